"""The endless repetition of a corpus: where it stands, and that every epoch is another."""

from src.distillation.corpus.corpora import batches_used, endless, standing_at


def of_epoch(epoch: int, skipped: int) -> list[str]:
    return [f"{epoch}:{number}" for number in range(skipped, 3)]


def test_stretches_follow_each_other_through_the_epochs_from_anywhere():
    whole = list(endless(3, of_epoch, 0, 8))
    assert whole == ["1:0", "1:1", "1:2", "2:0", "2:1", "2:2", "3:0", "3:1"]
    assert [item for first in (0, 4) for item in endless(3, of_epoch, first, 4)] == whole
    assert list(endless(3, of_epoch, 5, 3)) == whole[5:] and list(endless(3, of_epoch, 5, 0)) == []


def test_the_place_in_the_data_stays_where_evaluations_come_at_another_interval():
    state = {"step": 17, "iteration": 4, "batches_done": 2}
    assert batches_used(state, 5) == 17
    moved = standing_at(state, 17, 8)
    assert moved == {"step": 17, "iteration": 3, "batches_done": 1} and batches_used(moved, 8) == 17
