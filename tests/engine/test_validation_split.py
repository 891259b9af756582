"""A run that holds out training puzzles: they are reported beside the test set and choose the best checkpoint alone."""

import pytest
import torch

from engine.build import puzzles as build
from engine.config.check import check
from engine.config.schema import PretrainConfig
from engine.train.loop import is_best_so_far
from engine.train.plan import Plan, TrainState
from tests.tiny import ARCH, CPU, RUN, TRM, edit_json, flags, logged, pretrain, write_sudoku

SPLIT = {"eval.validation_split": 0.25}


@pytest.fixture
def data(tmp_path):
    return write_sudoku(tmp_path / "data")


def source(*folders, **changes):
    run = RUN | {"arch": {"name": TRM} | ARCH, "data_paths": [str(path) for path in folders]} | changes
    return build.build_puzzles(check(PretrainConfig, run), CPU)


def boards(items) -> set[tuple[int, ...]]:
    return {tuple(row) for _, batch, size in items for row in batch["inputs"][:size].tolist()}


def test_validation_puzzles_are_evaluated_after_the_test_set_and_never_trained_on(data):
    whole, split = source(data), source(data, eval={"validation_split": 0.25})
    assert (list(whole.data.eval_sets), list(whole.data.best_sets)) == (["all"], [])
    assert (list(split.data.eval_sets), list(split.data.best_sets)) == (["all", "validation"], ["validation"])
    sizes = [(name, size) for name, _, size in split.data.eval_items()]
    assert sizes == [("all", 8), ("all", 2), ("validation", 6)]
    held_out = boards(item for item in split.data.eval_items() if item[0] == "validation")
    trained = boards(item for number in range(1, 9) for item in split.data.train_items(number, 0))
    assert len(held_out) == 6 and not held_out & trained
    everything = boards(item for number in range(1, 9) for item in whole.data.train_items(number, 0))
    assert held_out | trained == everything and len(everything) == 24
    assert (whole.total_steps, split.total_steps) == (27, 20), "9 epochs of 24 and of 18 puzzles, 8 a step"


def test_best_follows_the_validation_set_and_not_the_test_set(data, tmp_path):
    run_dir = tmp_path / "run"
    ended = pretrain(flags(data, run_dir, best_metric="lm_loss", **SPLIT, epochs=12))
    assert ended.code == 0, ended.err
    assert set(ended.report) == {"all", "validation"}
    evaluations = {line["step"]: line for line in logged(run_dir) if "validation/lm_loss" in line}
    assert len(evaluations) == 4 and all("all/lm_loss" in line for line in evaluations.values())
    best = min(evaluations, key=lambda step: evaluations[step]["validation/lm_loss"])
    assert (run_dir / "best").resolve().name == f"step_{best}"


@pytest.mark.parametrize(("best_sets", "expected"), [((), False), (("validation",), True), (("all",), False)])
def test_only_the_sets_that_decide_are_asked(best_sets, expected):
    from types import SimpleNamespace

    state = TrainState(best_value=1.0)
    sets = SimpleNamespace(eval_sets=("all", "validation"), best_sets=best_sets)
    run = SimpleNamespace(plan=Plan(total_steps=1, expected_steps=1, iterations=1), data=sets, state=state)
    assert is_best_so_far(run, {"all": {"lm_loss": 3.0}, "validation": {"lm_loss": 0.5}}) is expected
    assert state.best_value == (0.5 if expected else 1.0)


def test_validation_needs_no_test_split_and_works_without_training(data, tmp_path):
    (data / "test").rename(tmp_path / "elsewhere")
    run_dir = tmp_path / "run"
    trained = pretrain(flags(data, run_dir, **SPLIT, epochs=3))
    assert trained.code == 0 and set(trained.report) == {"validation"}, trained.err
    judged = pretrain(flags(data, tmp_path / "none", **SPLIT, eval_only=True, load_checkpoint=str(run_dir)))
    assert judged.report["validation"] == pytest.approx(trained.report["validation"], rel=1e-6)
    refused = pretrain(flags(data, tmp_path / "none", eval_only=True, load_checkpoint=str(run_dir)))
    assert refused.code == 1 and "eval.validation_split" in refused.err


def test_a_resumed_run_goes_on_with_the_same_puzzles(data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(flags(data, whole, **SPLIT)).code == 0
    assert pretrain(flags(data, broken, **SPLIT, max_steps=7)).code == 0
    assert pretrain([*flags(data, broken, **SPLIT), "resume=true"]).code == 0
    last = [line for line in logged(whole) if "validation/lm_loss" in line][-1]
    assert [line for line in logged(broken) if "validation/lm_loss" in line][-1] == last
    assert torch.isfinite(torch.tensor(last["validation/lm_loss"]))


def test_a_test_set_of_the_same_name_is_refused(data):
    edit_json(data / "test" / "dataset.json", sets=["validation"])
    for file in (data / "test").glob("all__*.npy"):
        file.rename(file.with_name(file.name.replace("all__", "validation__")))
    assert list(source(data).data.eval_sets) == ["validation"]
    with pytest.raises(ValueError, match="a test set is called 'validation', the name of the puzzles"):
        source(data, eval={"validation_split": 0.25})
