"""Evaluation: sums over all batches become means at the very end, and a judge that fails costs nothing else."""

import dataclasses
import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from engine.build.puzzles import build_model
from engine.checkpoints.load import load_checkpoint
from engine.config import schema
from engine.tasks.puzzles import PuzzleTask
from engine.train import loop
from engine.train.evaluate import evaluate, flat
from tests.dataset.puzzle_samples import write_parity_dataset
from tests.tiny import ARCH, CPU, TRM, flags, logged, pretrain, steps_on_disk, wait_for, write_sudoku


@dataclasses.dataclass
class Batches:
    """Hands a task's sums out as they are written down."""

    sums: list[dict[str, float]]

    def eval_batch(self, batch, return_keys):
        values = self.sums[int(batch["inputs"][0])]
        outputs = {"preds": batch["inputs"] * 10}
        return {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}, {
            k: outputs[k] for k in return_keys
        }

    def eval_report(self, sums):
        return PuzzleTask.eval_report(self, sums)


def items(*names: str):
    return [(name, {"inputs": torch.tensor([number])}, 4) for number, name in enumerate(names)]


class Judge:
    required_outputs = {"preds"}

    def __init__(self) -> None:
        self.seen: list[int] = []

    def begin_eval(self) -> None:
        self.seen.clear()

    def update_batch(self, batch, preds) -> None:
        self.seen += preds["preds"].tolist()

    def result(self, save_path, rank, world_size, group):
        return {"judged": float(sum(self.seen)), "ranks": world_size}


class FailsInTheMiddle(Judge):
    def update_batch(self, batch, preds) -> None:
        if self.seen:
            raise ZeroDivisionError("no crumbs")
        super().update_batch(batch, preds)


class FailsAtTheEnd(Judge):
    def result(self, save_path, rank, world_size, group):
        raise OSError("no room for the submission")


def test_means_are_taken_over_all_rows_and_sets_stay_apart():
    task = Batches([{"count": 4, "lm_loss": 8.0}, {"count": 1, "lm_loss": 7.0}, {"count": 2, "lm_loss": 1.0}])
    report = evaluate(task, items("easy", "easy", "hard"), ["hard", "easy", "unseen"], CPU)
    assert report == {"hard": {"lm_loss": 0.5}, "easy": {"lm_loss": 3.0}}
    assert flat(report) == {"hard/lm_loss": 0.5, "easy/lm_loss": 3.0}


def test_small_numbers_are_not_lost_in_a_long_evaluation():
    task = Batches([{"count": 1.0, "lm_loss": 2.0**24}, {"count": 1.0, "lm_loss": 1.0}])
    numbers = [0, *[1] * 64]
    batches = [("all", {"inputs": torch.tensor([number])}, 1) for number in numbers]
    assert evaluate(task, batches, ["all"], CPU)["all"]["lm_loss"] * 65 == 2**24 + 64


def test_a_set_without_any_label_gives_zeros():
    report = evaluate(Batches([{"count": 0, "lm_loss": 0.0, "accuracy": 0.0}]), items("all"), ["all"], CPU)
    assert report == {"all": {"accuracy": 0.0, "lm_loss": 0.0}}


def test_a_failing_evaluator_is_reported_and_left_out(capsys):
    judges = [FailsInTheMiddle(), FailsAtTheEnd(), Judge()]
    task = Batches([{"count": 1, "lm_loss": 1.0}] * 3)
    report = evaluate(task, items("all", "all", "all"), ["all"], CPU, evaluators=judges)
    assert report == {"all": {"lm_loss": 1.0}, "Judge": {"judged": 30.0, "ranks": 1}}
    told = capsys.readouterr().err
    assert "FailsInTheMiddle failed and is left out: ZeroDivisionError: no crumbs" in told
    assert "FailsAtTheEnd failed and is left out: OSError: no room for the submission" in told
    assert told.count("FailsInTheMiddle") == 1, "after its first fault it is not asked again"


def test_wanted_outputs_are_saved_in_order(tmp_path):
    task = Batches([{"count": 1}] * 3)
    evaluate(task, items("a", "a", "b"), ["a", "b"], CPU, save_outputs=["preds"], output_dir=tmp_path, label="step_7")
    saved = load_file(tmp_path / "step_7_all_preds.0.safetensors")
    assert {name: value.tolist() for name, value in saved.items()} == {"preds": [0, 10, 20]}


def test_an_output_that_no_model_has_is_named_with_those_that_exist():
    config = schema.ArchChoice.model_validate({"name": TRM} | ARCH)
    batch = {name: torch.zeros(2, 4, dtype=torch.int32) for name in ("inputs", "labels")}
    batch["puzzle_identifiers"] = torch.zeros(2, dtype=torch.int32)
    task = PuzzleTask(build_model(config, metadata(), 2, CPU), CPU, seed=0)
    with pytest.raises(ValueError, match=r"prds.*preds, .*q_halt_logits"):
        evaluate(task, [("all", batch, 2)], ["all"], CPU, save_outputs=["prds"])


def metadata():
    from dataset.common import PuzzleDatasetMetadata

    return PuzzleDatasetMetadata(
        **dict.fromkeys(("pad_id", "ignore_label_id", "blank_identifier_id"), 0),
        **{"vocab_size": 6, "seq_len": 4, "num_puzzle_identifiers": 1, "total_groups": 1},
        **{"mean_puzzle_examples": 1, "total_puzzles": 1, "sets": ["all"]},
    )


@pytest.mark.parametrize(("with_average", "tied"), [(True, False), (False, False), (True, True)])
def test_eval_only_gives_the_numbers_that_training_logged(tmp_path, with_average, tied):
    data, run_dir = write_sudoku(tmp_path / "data", identifiers=4), tmp_path / "run"
    arch = {"puzzle_emb_ndim": 32, "tie_embeddings": tied}
    options = {"arch": arch, "ema": with_average, "ema_rate": 0.8, "epochs": 3}
    trained = pretrain(flags(data, run_dir, **options))
    last = {key.removeprefix("all/"): value for key, value in logged(run_dir)[-1].items() if key.startswith("all/")}
    assert trained.report == {"all": last}

    before = sorted(path.name for path in run_dir.iterdir())
    elsewhere = tmp_path / "elsewhere"
    for source in (run_dir, run_dir / "step_9", run_dir / "latest"):
        words = flags(data, elsewhere, **options, load_checkpoint=str(source), eval_only=True)
        assert pretrain(words).report == {"all": pytest.approx(last, rel=1e-6)}
    assert not elsewhere.exists() and sorted(path.name for path in run_dir.iterdir()) == before
    if with_average:
        (run_dir / "step_9" / "ema.safetensors").unlink()
        meta = json.loads((run_dir / "step_9" / "meta.json").read_text())
        del meta["files"]["ema.safetensors"]
        (run_dir / "step_9" / "meta.json").write_text(json.dumps(meta))
        assert pretrain(words).report["all"]["lm_loss"] != pytest.approx(last["lm_loss"], rel=1e-4)


def test_eval_only_saves_predictions_where_it_is_told(tmp_path):
    data, run_dir, out = write_sudoku(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    assert pretrain(flags(data, run_dir, epochs=3)).code == 0
    words = flags(data, out, load_checkpoint=str(run_dir), eval_only=True, eval_save_outputs=["preds", "labels"])
    ended = pretrain(words)
    assert ended.code == 0, ended.err
    saved = load_file(out / "eval_all_preds.0.safetensors")
    supervised = saved["labels"] != -100
    assert saved["preds"].shape == (16, 16) and supervised.sum() == 10 * 16, "ten puzzles and six rows of padding"
    right = (saved["preds"] == saved["labels"])[supervised].float().mean()
    assert right.item() == pytest.approx(ended.report["all"]["accuracy"], rel=1e-5)


SHALLOW = {"H_cycles": 1, "halt_max_steps": 1}


class KilledError(BaseException):
    """Ends a run on the spot, as a kill does."""


def killed(*_args, **_options):
    raise KilledError


def test_a_resumed_run_keeps_the_votes_of_the_evaluations_before(tmp_path):
    """An untrained model solves nothing, so the votes themselves are compared."""
    data, whole, broken = write_parity_dataset(tmp_path / "arc", "arc/default"), tmp_path / "whole", tmp_path / "broken"
    options = {"evaluators": "[{name: arc@ARC}]", "epochs": 2, "eval_interval": 1, "arch": SHALLOW}
    assert pretrain(flags(data, whole, **options)).code == 0
    command = flags(data, broken, **options)
    evaluations = iter([evaluate, killed])
    with (
        mock.patch.object(loop, "evaluate", lambda *args, **options: next(evaluations)(*args, **options)),
        pytest.raises(KilledError),
    ):
        pretrain(command)
    wait_for(lambda: (broken / "best").exists())
    assert pretrain([*command, "resume=true"]).code == 0

    first, last = steps_on_disk(whole)
    paths = [whole / f"step_{first}", whole / f"step_{last}", broken / f"step_{last}"]
    once, votes, resumed = (load_checkpoint(path, with_trainer=True).trainer["evaluators"]["0 ARC"] for path in paths)
    assert resumed.pop("test_inputs") == votes.pop("test_inputs")
    torch.testing.assert_close(resumed, votes, rtol=0, atol=0)
    assert len(votes["votes"]) == 2 * len(once["votes"]) > 0
