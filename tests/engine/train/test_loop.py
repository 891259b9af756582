"""The loop: equal to the reference's, unmoved by steps that are not finite, and on time with what is due."""

import copy
import dataclasses
import math
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.build.puzzles import build_optimizers
from engine.checkpoints.load import load_checkpoint
from engine.config.schema import PretrainConfig
from engine.runtime.signals import StopSignal
from engine.tasks.puzzles import PuzzleTask
from engine.train.evaluate import evaluate
from engine.train.loop import Run, RunData, fit, train_step
from engine.train.plan import Plan, TrainState
from engine.train.resume import restore
from models.ema import WeightAverage
from models.losses import puzzles as losses
from tests.models.parity import arrays, batch_of, description, load_head, sample
from tests.tiny import CPU, Recorder, flags, logged, pretrain, write_sudoku

METRIC = {"rel": 0, "abs": 1e-5}
WEIGHT = {"rtol": 0, "atol": 5e-6}


def plan(total_steps: int, iterations: int = 1, **changes) -> Plan:
    return Plan(total_steps=total_steps, expected_steps=total_steps, iterations=iterations, **changes)


def reference_run(items, **changes) -> Run:
    """The run of the reference's recorded train loop; `items(iteration, batches done)` gives its data."""
    info = description("train_loop.json")
    head = load_head(info["case"])
    settings = info["hyperparameters"] | {"arch": {"name": info["arch"]}, "data_paths": ["unused"]}
    config = PretrainConfig.model_validate(settings)
    run = Run(
        task=PuzzleTask(head, CPU, seed=0),
        data=RunData(train_items=items, eval_items=None, eval_sets=["all"]),
        optimizers=build_optimizers(config, head, CPU, info["total_steps"]),
        plan=plan(total_steps=info["total_steps"], log_interval=2, save_every_eval=False),
        runtime=CPU,
        tracker=Recorder(),
        store=None,
        run_dir=None,
        checkpoint_yaml="",
        average=WeightAverage(head, config.ema_rate),
    )
    return dataclasses.replace(run, **changes)


def train_items(data, count: int):
    return [("all", batch_of(data, f"train{t}"), 4) for t in range(1, count + 1)]


def test_the_loop_equals_the_reference_step_by_step(tmp_path):
    info, data = description("train_loop.json"), arrays("train_loop.npz")
    names = info["param_order"]

    def check(t: int) -> None:
        head, carry = run.task.head, run.task.carries[0]
        parameters = dict(head.named_parameters())
        for key, tensors in (("param_norms", parameters), ("ema_param_norms", run.average.shadow)):
            norms = [tensors[name].detach().double().norm() for name in names]
            np.testing.assert_allclose(norms, data[f"train{t}/{key}"], rtol=0, atol=1e-5, err_msg=f"{key} {t}")
        np.testing.assert_allclose(head.model.puzzle_emb.weights, data[f"train{t}/puzzle_emb.weights"], **WEIGHT)
        np.testing.assert_allclose(head.model.inner.q_head.bias.detach(), data[f"train{t}/q_head.bias"], **WEIGHT)
        np.testing.assert_array_equal(carry.steps, data[f"train{t}/steps"])
        np.testing.assert_array_equal(carry.halted, data[f"train{t}/halted"])

    def items(iteration, batches_done):
        for t, item in enumerate(train_items(data, 6), start=1):
            yield item  # what follows runs when the loop asks for the next one
            check(t)

    run = reference_run(items)
    fit(run, StopSignal())
    assert run.state.step == 5, "the sixth batch is beyond the end"
    run.average.update(6)  # the reference averages once more after a sixth call that trains nothing
    check(6)

    expected = [metrics for metrics in info["train_metrics"] if metrics]
    for line, metrics in zip(run.tracker.lines, expected, strict=True):
        # The reference divides the count by itself; here it is the number of rows that ended.
        metrics["train/count"] = data[f"train{line['step']}/halted"].sum()
        assert {key: value for key, value in line.items() if key in metrics} == pytest.approx(metrics, **METRIC)
    for name, parameter in run.task.head.named_parameters():
        np.testing.assert_allclose(sample(parameter), data[f"final/param.{name}"], **WEIGHT, err_msg=name)
        np.testing.assert_allclose(sample(run.average.shadow[name]), data[f"final/ema.{name}"], **WEIGHT, err_msg=name)

    held_out = [("all", batch_of(data, f"eval{i}"), size) for i, size in enumerate(info["eval_sizes"], start=1)]
    wanted = ("preds", "q_halt_logits")
    with run.average.swapped_in():
        report = evaluate(run.task, held_out, ["all"], CPU, save_outputs=wanted, output_dir=tmp_path, label="end")
    assert report == {"all": pytest.approx(info["eval_metrics"]["all"], **METRIC)}
    saved = load_file(tmp_path / "end_all_preds.0.safetensors")
    for i, rows in enumerate((slice(0, 4), slice(4, 8)), start=1):
        np.testing.assert_array_equal(saved["preds"][rows], data[f"eval{i}/preds"])
        np.testing.assert_allclose(saved["q_halt_logits"][rows], data[f"eval{i}/q_halt_logits"], rtol=0, atol=3e-5)


def everything(run: Run):
    """All that a step learns."""
    return copy.deepcopy((run.task.head.state_dict(), run.average.shadow, run.optimizers.state_dict()))


def spoil_weight(run: Run) -> None:
    next(run.task.head.parameters()).grad[0, 0] = math.nan


def spoil_puzzle_rows(run: Run) -> None:
    run.task.head.model.puzzle_emb.local_weights.grad[0, 0] = math.inf


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_puzzle_rows, None])
def test_a_step_that_is_not_finite_teaches_nothing(spoil):
    items = train_items(arrays("train_loop.npz"), 4)
    run = reference_run(None)
    train_step(run, items[0])
    before = everything(run)
    honest = run.task.train_step

    def spoiled(item, step):
        sums = honest(item, step)
        if spoil is None:
            sums["lm_loss"] = sums["lm_loss"] + math.inf  # the gradient is finite all the same
        else:
            spoil(run)
        return sums

    with mock.patch.object(run.task, "train_step", spoiled):
        train_step(run, items[1])
        train_step(run, items[2])
    torch.testing.assert_close(everything(run), before, rtol=0, atol=0)
    assert (run.state.step, run.state.bad_steps, run.state.bad_steps_in_row) == (3, 2, 2)
    assert [line.get("train/skipped_steps") for line in run.tracker.lines] == [None, 1, 2]
    assert [line.get("train/freed_rows") for line in run.tracker.lines] == [None, 0, 0], "no row was to blame"
    assert all("train/lr" not in line for line in run.tracker.lines[1:])

    train_step(run, items[3])
    assert (run.state.bad_steps, run.state.bad_steps_in_row) == (2, 0)
    assert all(torch.isfinite(p).all() for p in run.task.head.parameters())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(everything(run), before, rtol=0, atol=0)


@pytest.mark.parametrize(("clip", "used"), [(None, None), (0.25, 0.25), (1e6, None)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip, used):
    run = reference_run(None, plan=plan(total_steps=5, log_interval=1, grad_clip=clip))
    honest, norms = run.optimizers.step, []

    def measured(step):
        norms.append(
            sum(float(gradient.double().square().sum()) for gradient in run.optimizers.dense_gradients()) ** 0.5
        )
        return honest(step)

    with mock.patch.object(run.optimizers, "step", measured):
        train_step(run, train_items(arrays("train_loop.npz"), 1)[0])
    found = run.tracker.lines[0]["train/grad_norm"]
    assert found > 0.3, "what is logged is the norm before clipping"
    assert norms == [pytest.approx(used or found, rel=1e-5)]


class Spoiled:
    """A loss that is NaN from some call on."""

    def __init__(self, first_bad: int) -> None:
        self.calls, self.first_bad = 0, first_bad

    def __call__(self, logits, labels):
        self.calls += logits.requires_grad
        loss = losses.stablemax_cross_entropy(logits, labels)
        return loss * math.nan if self.calls >= self.first_bad else loss


def test_a_run_that_stays_bad_stops_and_names_the_last_good_checkpoint(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    command = flags(data, run_dir, checkpoint_interval=4, max_bad_steps=3)
    with mock.patch.dict(losses.LOSSES, stablemax_cross_entropy=Spoiled(first_bad=7)):
        ended = pretrain(command)
    assert ended.code == 1 and ended.out == ""
    assert "not finite in 3 steps in a row, up to step 9" in ended.err
    assert f"The last good checkpoint is {run_dir / 'step_8'}" in ended.err and "resume=true" in ended.err
    assert [line.get("train/skipped_steps") for line in logged(run_dir)[6:9]] == [1, 2, 3]
    assert logged(run_dir)[8]["nonfinite"]["train/grad_norm"] == "nan"
    assert pretrain([*command, "resume=true"]).code == 0, "the saved weights are good"


def test_restoring_brings_back_torch_s_random_numbers(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    assert pretrain(flags(data, run_dir, max_steps=1)).code == 0
    trainer = load_checkpoint(run_dir, with_trainer=True).trainer
    run = reference_run(None)
    with mock.patch.object(run.optimizers, "load_state_dict"), mock.patch.object(run.task, "load_state_dict"):
        torch.manual_seed(123)
        restore(run, trainer, run.average.state_dict())
    assert torch.equal(torch.get_rng_state(), trainer["torch_rng"])
    best = {"best_step": 1, "best_value": run.state.best_value, "improved_value": run.state.best_value}
    assert run.state == TrainState(step=1, batches_done=1, evaluated_step=1, **best)


def test_a_run_is_over_after_its_last_step_or_its_last_pass():
    whole = plan(total_steps=10, iterations=2)
    assert not whole.is_over(TrainState(step=9, iteration=2))
    assert whole.is_over(TrainState(step=10, iteration=1))
    assert whole.is_over(TrainState(step=4, iteration=3)), "the estimate of the steps may have been too high"


def test_a_poisoned_row_costs_one_step_and_not_the_run():
    """With every row in flight for all its steps, it would spoil each of them."""
    run = reference_run(None)
    run.plan = dataclasses.replace(run.plan, max_bad_steps=2)
    items = train_items(arrays("train_loop.npz"), 4)
    train_step(run, items[0])
    run.task.carries[0].inner_carry.z_H[2] = math.nan
    run.task.carries[0].halted[:] = False
    for item in items[1:]:
        train_step(run, item)
    assert (run.state.step, run.state.bad_steps, run.state.freed_rows) == (4, 1, 1)
    assert [line.get("train/freed_rows") for line in run.tracker.lines] == [None, 1, None, None]
