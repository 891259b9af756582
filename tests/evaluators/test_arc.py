"""ARC votes and scores: equal to the reference, the same on one rank and on several."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.common import Batch, PuzzleDatasetMetadata
from dataset.puzzles.arc_grids import to_tokens
from dataset.puzzles.format import open_split
from evaluators.arc import ARC
from tests.dataset.puzzle_samples import parity_arrays, parity_json, write_parity_dataset, write_small_dataset
from tests.tiny import ROOT, end, start_python

CASES = parity_json("arc_evaluator")
BATCH = 5


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity_dataset(tmp_path_factory.mktemp("parity") / "arc", "arc/default")


@pytest.fixture
def metadata(arc: Path) -> PuzzleDatasetMetadata:
    return open_split(arc, "test").metadata


def golden_batches(arc: Path, rows: list[int], right: bool = False, shift: int = 0) -> list[tuple[Batch, Batch]]:
    """The golden predictions (or the true grids) in batches; the last one is padded with blank rows that are sure."""
    golden = parity_arrays("arc_evaluator")
    stored = open_split(arc, "test").sets["all"]
    arrays = {
        "inputs": stored.inputs.astype(np.int32),
        "puzzle_identifiers": golden["puzzle_identifiers"] + shift,
        "preds": (stored.labels if right else golden["preds"]).astype(np.int32),
        "q_halt_logits": golden["q_halt_logits"],
    }
    batches = []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        parts = {}
        for key, values in arrays.items():
            blank = 9.0 if key == "q_halt_logits" else 0
            parts[key] = np.full((BATCH, *values.shape[1:]), blank, dtype=values.dtype)
            parts[key][: len(chosen)] = values[chosen]
        tensors = {key: torch.from_numpy(part) for key, part in parts.items()}
        outputs = {key: tensors.pop(key) for key in ("preds", "q_halt_logits")}
        batches.append((tensors, outputs))
    return batches


def evaluate(evaluator: ARC, batches: list[tuple[Batch, Batch]], save_path: Path | None = None) -> dict[str, float]:
    evaluator.begin_eval()
    for batch, outputs in batches:
        evaluator.update_batch(batch, outputs)
    result = evaluator.result(save_path, rank=0, world_size=1)
    assert result is not None
    return result


@pytest.mark.parametrize("case", CASES)
def test_scores_and_submission_equal_the_reference(
    arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path, case: str
) -> None:
    golden = CASES[case]
    evaluator = ARC(str(arc), metadata, **golden["args"])
    if golden["repeats"] == 2:
        assert evaluate(evaluator, golden_batches(arc, golden["rows"], right=True))["ARC/pass@1"] == 1
    result = evaluate(evaluator, golden_batches(arc, golden["rows"]), tmp_path / "new" / "folder")
    assert result == golden["result"]
    assert json.loads((tmp_path / "new" / "folder" / "submission.json").read_text()) == golden["submission"]


def restored(evaluator: ARC, arc: Path, metadata: PuzzleDatasetMetadata, file: Path) -> ARC:
    """A new evaluator with the state of another one, by way of a file as checkpoints have them."""
    torch.save(evaluator.state_dict(), file)
    fresh = ARC(arc, metadata, aggregated_voting=evaluator.aggregated_voting)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize("aggregated", [True, False])
def test_a_restored_evaluator_scores_what_an_uninterrupted_one_does(
    arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path, aggregated: bool
) -> None:
    rows = CASES["default"]["rows"]
    right, golden = golden_batches(arc, rows, right=True), golden_batches(arc, rows)
    whole = ARC(arc, metadata, aggregated_voting=aggregated)
    resumed = restored(whole, arc, metadata, tmp_path / "empty.pt")
    scores = []
    for number, batches in enumerate((right, golden, golden)):
        folders = [tmp_path / f"{name}{number}" for name in ("whole", "resumed")]
        results = [evaluate(one, batches, out) for one, out in zip((whole, resumed), folders, strict=True)]
        assert results[0] == results[1]
        assert len({(folder / "submission.json").read_text() for folder in folders}) == 1
        scores.append(results[0]["ARC/pass@1"])
        resumed = restored(resumed, arc, metadata, tmp_path / "state.pt")
    alone = CASES["default"]["result"]["ARC/pass@1"]
    assert (scores[0], scores[1]) == (1, 1 if aggregated else alone), "the votes of the first evaluation count or not"


def test_an_evaluation_without_a_result_has_no_vote(arc: Path, metadata: PuzzleDatasetMetadata) -> None:
    golden = golden_batches(arc, CASES["default"]["rows"])
    evaluator = ARC(arc, metadata)
    evaluator.begin_eval()
    for batch in golden_batches(arc, CASES["default"]["rows"], right=True):
        evaluator.update_batch(*batch)
    torch.testing.assert_close(evaluator.state_dict(), ARC(arc, metadata).state_dict())
    assert evaluate(evaluator, golden) == CASES["default"]["result"]


def test_blank_row_is_left_out_wherever_it_stands(arc: Path, metadata: PuzzleDatasetMetadata) -> None:
    """A confidence belongs to its row, also behind a blank one."""
    golden = CASES["default"]
    batches = golden_batches(arc, golden["rows"])
    turned = [tuple({key: value.flip(0) for key, value in part.items()} for part in pair) for pair in reversed(batches)]
    blank_first = evaluate(ARC(arc, metadata), turned)
    whole = golden_batches(arc, golden["rows"][::-1])
    assert blank_first == evaluate(ARC(arc, metadata), whole) == golden["result"]


def votes_on_bb01(arc: Path, colours: list[int], confidences: list[float]) -> tuple[Batch, Batch]:
    """A blank row that is sure of itself, then predictions of one colour each for the one test input of bb01."""
    plain = json.loads((arc / "identifiers.json").read_text()).index("bb01")
    (row,) = np.flatnonzero(parity_arrays("arc_evaluator")["puzzle_identifiers"] == plain)
    given = torch.from_numpy(open_split(arc, "test").sets["all"].inputs[row].astype(np.int32))
    grids = [to_tokens(np.full((2, 2), colour)) for colour in [9, *colours]]
    batch = {"inputs": given.repeat(len(grids), 1), "puzzle_identifiers": torch.tensor([0] + [plain] * len(colours))}
    outputs = {"preds": torch.from_numpy(np.stack(grids)), "q_halt_logits": torch.tensor([9.0, *confidences])}
    return batch, outputs


def attempts_at_bb01(folder: Path) -> list[int]:
    (attempts,) = json.loads((folder / "submission.json").read_text())["bb01"]
    return [attempts[f"attempt_{k}"][0][0] for k in range(1, len(attempts) + 1)]


def test_count_goes_first_then_the_confidence_of_the_row(
    arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path
) -> None:
    votes = votes_on_bb01(arc, [1, 2, 3, 3], [0.0, 4.0, -5.0, -5.0])
    evaluate(ARC(arc, metadata, submission_K=3), [votes], tmp_path)
    assert attempts_at_bb01(tmp_path) == [3, 2, 1]


def test_tie_goes_to_the_earlier_batch_on_any_rank(
    arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = votes_on_bb01(arc, [], [])
    ranks = [ARC(arc, metadata) for _ in range(2)]
    for evaluator, batches in zip(
        ranks,
        ([nothing, votes_on_bb01(arc, [1], [2.0])], [votes_on_bb01(arc, [2], [2.0]), nothing]),
        strict=True,
    ):
        for batch in batches:
            evaluator.update_batch(*batch)

    def gather(own: object, into: list[object], dst: int, group: object) -> None:
        into[:] = [evaluator._votes for evaluator in ranks]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    ranks[0].result(tmp_path, rank=0, world_size=2)
    assert attempts_at_bb01(tmp_path) == [2, 1]


def test_answers_missing_for_one_input_keep_their_place(
    arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path
) -> None:
    right = golden_batches(arc, list(range(24)), right=True)
    puzzles = json.loads((arc / "test_puzzles.json").read_text())
    first = to_tokens(np.array(puzzles["bb02"]["test"][0]["input"]))
    plain = json.loads((arc / "identifiers.json").read_text()).index("bb02")
    kept = []
    for batch, outputs in right:
        mine = (batch["puzzle_identifiers"] == plain) & (batch["inputs"] != torch.from_numpy(first)).any(dim=1)
        kept.append(({k: v[mine] for k, v in batch.items()}, {k: v[mine] for k, v in outputs.items()}))
    result = evaluate(ARC(arc, metadata), kept, tmp_path)
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert submission["bb02"][0] == {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert submission["bb02"][1]["attempt_1"] == puzzles["bb02"]["test"][1]["output"]
    assert result["ARC/pass@1"] == pytest.approx(0.5 / 3)


def test_shifted_and_foreign_identifiers(arc: Path, metadata: PuzzleDatasetMetadata) -> None:
    shifted = golden_batches(arc, CASES["default"]["rows"], shift=100)
    assert evaluate(ARC(arc, metadata, identifier_offset=100), shifted) == CASES["default"]["result"]
    assert set(evaluate(ARC(arc, metadata), shifted).values()) == {0.0}


def test_nothing_predicted_scores_nothing(arc: Path, metadata: PuzzleDatasetMetadata, tmp_path: Path) -> None:
    assert set(evaluate(ARC(arc, metadata), [], tmp_path).values()) == {0.0}
    assert set(map(str, json.loads((tmp_path / "submission.json").read_text()).values())) == {"[]"}


def test_output_that_is_missing_is_named(arc: Path, metadata: PuzzleDatasetMetadata) -> None:
    ((batch, outputs),) = golden_batches(arc, [0])
    del outputs["q_halt_logits"]
    with pytest.raises(ValueError, match="q_halt_logits"):
        ARC(arc, metadata).update_batch(batch, outputs)


def test_data_set_without_test_puzzles_is_refused(tmp_path: Path, metadata: PuzzleDatasetMetadata) -> None:
    with pytest.raises(ValueError, match="test_puzzles.json"):
        ARC(write_small_dataset(tmp_path / "d"), metadata)


def rank_main(rank: int, world_size: int, arc: Path, folder: Path) -> None:
    """One process of the test below: every rank takes its share of each batch."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size
    )
    evaluator = ARC(arc, open_split(arc, "test").metadata)
    evaluator.begin_eval()
    for whole in golden_batches(arc, list(range(24))):
        share = slice(0, 3) if rank == 0 else slice(3, BATCH)
        evaluator.update_batch(*({key: value[share] for key, value in part.items()} for part in whole))
    result: Any = evaluator.result(folder / "out", rank, world_size)
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def test_two_ranks_give_what_one_gives(arc: Path, tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from tests.evaluators.test_arc import rank_main; "
    program += "rank_main(int(sys.argv[1]), 2, Path(sys.argv[2]), Path(sys.argv[3]))"
    ranks = [start_python(["-c", program, rank, arc, tmp_path], ROOT) for rank in range(2)]
    assert [end(process).code for process in ranks] == [0, 0]
    assert json.loads((tmp_path / "rank0.json").read_text()) == CASES["default"]["result"]
    assert json.loads((tmp_path / "rank1.json").read_text()) is None
    assert json.loads((tmp_path / "out" / "submission.json").read_text()) == CASES["default"]["submission"]
