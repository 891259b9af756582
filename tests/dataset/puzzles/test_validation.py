"""Held-out training puzzles: whole groups, chosen by the seed, the same for every rank and whatever else changes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.puzzles.reader import PuzzleDataset, is_held_out
from tests.dataset.puzzle_samples import open_dataset, write_small_dataset

# Ten groups of a puzzle and its copies, of one to three examples each; all puzzles are blank, as boards are.
GROUPS = ((2, 2), (1,), (3, 3, 3), (1, 1), (2,), (1, 1, 1), (2, 2), (3,), (1,), (1, 1))


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    return write_small_dataset(tmp_path / "d", GROUPS, first_identifier=None)


def open_part(*folders: Path, held_out: bool = False, share: float = 0.3, **config: object) -> PuzzleDataset:
    """What is trained on, or what is held out of it."""
    return open_dataset(*folders, test_set_mode=held_out, validation_split=share, **config)


def groups_of(examples: list[int]) -> list[int]:
    """To which groups these examples (numbered in the first column of the inputs) belong."""
    ends = np.cumsum([sum(sizes) for sizes in GROUPS])
    return [int(np.searchsorted(ends, example, side="right")) for example in examples]


def examples_of(data: PuzzleDataset, times: int = 1) -> list[int]:
    items = [item for _ in range(times) for item in data]
    return [row for _, batch, size in items for row in batch["inputs"][:size, 0].tolist()]


def test_no_group_is_on_both_sides_and_none_is_lost(boards: Path) -> None:
    trained = groups_of(examples_of(open_part(boards, global_batch_size=1), times=30))
    held_out = groups_of(examples_of(open_part(boards, held_out=True)))
    assert len(set(held_out)) == 3 and set(trained) | set(held_out) == set(range(10))
    assert not set(trained) & set(held_out)


def test_of_a_held_out_group_the_puzzle_itself_is_tested_once_and_in_order(boards: Path) -> None:
    held_out = examples_of(open_part(boards, held_out=True))
    starts = np.cumsum([0, *(sum(sizes) for sizes in GROUPS)])
    assert held_out == [starts[g] + i for g in sorted(set(groups_of(held_out))) for i in range(GROUPS[g][0])]
    data = open_part(boards, held_out=True, global_batch_size=2)
    items = list(data)
    assert {name for name, _, _ in items} == {"validation"} and len(items) == data.num_batches()


def test_the_seed_and_nothing_else_chooses(boards: Path) -> None:
    chosen = [examples_of(open_part(boards, held_out=True, seed=seed)) for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1] and len({tuple(rows) for rows in chosen}) == 3
    for batch, ranks in ((2, 1), (6, 3)):
        parts = [
            list(open_part(boards, held_out=True, global_batch_size=batch, rank=rank, num_replicas=ranks))
            for rank in range(ranks)
        ]
        shares = [[item[1]["inputs"][:, 0].tolist() for item in items] for items in zip(*parts, strict=True)]
        sizes = [size for _, _, size in parts[0]]
        rows = [[row for share in shared for row in share][:n] for shared, n in zip(shares, sizes, strict=True)]
        assert sum(rows, []) == chosen[0]


def test_training_ranks_share_out_what_one_rank_sees(boards: Path) -> None:
    whole = list(open_part(boards, epochs_per_iter=3))
    parts = [list(open_part(boards, epochs_per_iter=3, rank=rank, num_replicas=2)) for rank in range(2)]
    assert whole
    for (_, batch, _), *shares in zip(whole, *parts, strict=True):
        assert sum((share[1]["inputs"].tolist() for share in shares), []) == batch["inputs"].tolist()


def test_without_a_split_everything_is_trained_on_as_before(boards: Path) -> None:
    usual, none = open_dataset(boards), open_part(boards, share=0.0)
    assert usual.metadata == none.metadata and usual.metadata.total_groups == 10
    assert examples_of(usual, 3) == examples_of(none, 3)


def test_the_length_of_a_run_is_that_of_the_groups_that_are_left(boards: Path) -> None:
    assert open_part(boards).metadata.total_groups == 7
    assert open_part(boards, held_out=True).metadata.total_groups == 3


@given(num_groups=st.integers(2, 60), share=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_the_share_is_met_as_near_as_whole_groups_come(num_groups: int, share: float, seed: int) -> None:
    count = int(is_held_out(num_groups, share, [seed, 0]).sum())
    assert 1 <= count <= num_groups - 1
    assert abs(count - share * num_groups) <= 1


def test_a_larger_share_only_adds_groups_and_sets_are_divided_apart() -> None:
    small, large = (is_held_out(50, share, [0, 0]) for share in (0.1, 0.4))
    assert (large >= small).all() and (small.sum(), large.sum()) == (5, 20)
    assert not np.array_equal(is_held_out(50, 0.4, [0, 0]), is_held_out(50, 0.4, [0, 1]))


def test_several_data_sets_are_validated_as_one(tmp_path: Path) -> None:
    folders = [write_small_dataset(tmp_path / name, ((1,),) * 10, first_identifier=None) for name in "ab"]
    items = list(open_part(*folders, held_out=True, share=0.2))
    assert [(name, size) for name, _, size in items] == [("validation", 2), ("validation", 2)]
    assert {name for name, _, _ in open_part(*folders, share=0.2)} == {"all@a", "all@b"}


def test_puzzles_that_only_their_own_training_makes_known_are_not_held_out(tmp_path: Path) -> None:
    arc = write_small_dataset(tmp_path / "arc", ((2,),) * 10)
    with pytest.raises(
        ValueError, match=r"validation_split=0.3 would hold out 3 puzzle identifiers altogether.*as in ARC"
    ):
        open_part(arc)
    file = arc / "train" / "all__puzzle_identifiers.npy"
    np.save(file, 1 + np.load(file) % 2)  # kinds of puzzles, each of which is trained, too
    assert len(list(open_part(arc, held_out=True))) == 2


def test_what_cannot_be_divided_or_fills_no_batch_is_refused(tmp_path: Path) -> None:
    alone = write_small_dataset(tmp_path / "alone", ((4,),), first_identifier=None)
    with pytest.raises(ValueError, match=r"validation_split=0.5.* 1 group"):
        open_part(alone, share=0.5)
    few = write_small_dataset(tmp_path / "few", ((1,),) * 5, first_identifier=None)
    assert len(list(open_dataset(few))) == 1
    with pytest.raises(ValueError, match="3 examples, global_batch_size=4"):
        open_part(few, share=0.4)
