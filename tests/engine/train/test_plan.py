"""What is due at a step, and when a run is over; evaluations at steps, patience, and the base value, in the loop itself."""

import math
from typing import Any
from unittest import mock

import pytest

from engine.runtime.signals import StopSignal
from engine.train import loop
from engine.train.loop import Run, RunData, fit
from engine.train.plan import Plan, TrainState, is_due
from tests.tiny import CPU, Recorder


def plan(**changes: Any) -> Plan:
    return Plan(**{"total_steps": 10, "expected_steps": 10, "iterations": 100} | changes)


class Work:
    """A task whose steps do nothing, with three batches a pass."""

    def feed(self, items: Any) -> Any:
        return ((item, 1) for item in items)

    def prepare(self, item: Any) -> None:
        return


def run_of(plan: Plan, values: list[float], **state: Any) -> tuple[Run, list[tuple[str, int]], Any]:
    """A run, what happened at which step, and the patches under which it happens: evaluations give `values`."""
    happened: list[tuple[str, int]] = []
    outcomes = iter(values)
    run = Run(
        task=Work(),  # type: ignore[arg-type]
        data=RunData(lambda _, done: range(done, 3), lambda: [], eval_sets=["val"]),  # type: ignore[arg-type]
        optimizers=None,  # type: ignore[arg-type]
        plan=plan,
        runtime=CPU,
        tracker=Recorder(),  # type: ignore[arg-type]
        store=None,
        run_dir=None,  # type: ignore[arg-type]
        checkpoint_yaml="",
        state=TrainState(**state),
    )

    def step(run: Run, item: Any, meanwhile: Any) -> None:
        run.state.step += 1

    def evaluate(run: Run) -> dict[str, dict[str, float]]:
        happened.append(("eval", run.state.step))
        return {"val": {"lm_loss": next(outcomes)}}

    def save(run: Run, is_best: bool = False) -> None:
        happened.append(("best" if is_best else "save", run.state.step))

    told = {"expectation": lambda *_: ""}
    patches = mock.patch.multiple(loop, train_step=step, evaluate_now=evaluate, save=save, **told)
    return run, happened, patches


def test_something_is_due_every_so_many_steps_and_never_at_the_start() -> None:
    assert [step for step in range(7) if is_due(step, 3)] == [3, 6]
    assert not is_due(4, None)


@pytest.mark.parametrize(("metric", "better", "worse"), [("lm_loss", 0.9, 0.95), ("exact_accuracy", 1.1, 1.05)])
def test_an_improvement_must_be_large_enough_in_the_direction_of_the_metric(
    metric: str, better: float, worse: float
) -> None:
    asked = plan(best_metric=metric)
    assert asked.is_better(better, 1.0, by=0.09) and not asked.is_better(worse, 1.0, by=0.09)
    assert asked.is_better(worse, 1.0) and asked.is_better(worse, None) and not asked.is_better(float("nan"), 1.0)


@pytest.mark.parametrize("metric", ["lm_loss", "exact_accuracy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best_and_any_number_beats_it(metric: str, value: float) -> None:
    asked = plan(best_metric=metric)
    assert not asked.is_better(value, None) and not asked.is_better(value, 1.0)
    assert asked.is_better(1.0, value) and asked.is_better(1.0, value, by=0.5)


def test_evaluations_at_steps_take_the_place_of_those_at_the_ends_of_passes() -> None:
    run, happened, patches = run_of(plan(eval_every_steps=4, save_every_steps=3, save_every_eval=False), [3, 2, 5])
    with patches:
        report = fit(run, StopSignal())
    assert happened == [
        ("save", 3),
        ("eval", 4), ("best", 4),
        ("save", 6),
        ("eval", 8), ("best", 8),
        ("save", 9),
        ("eval", 10), ("save", 10),
    ]  # fmt: skip
    assert report == {"val": {"lm_loss": 5}}
    assert (run.state.iteration, run.state.batches_done) == (4, 1)


def test_a_run_ends_when_evaluations_no_longer_improve_enough() -> None:
    asked = plan(total_steps=100, eval_every_steps=2, patience=2, min_improvement=0.1)
    run, happened, patches = run_of(asked, [1.0, 0.95, 0.93])
    with patches:
        fit(run, StopSignal())
    assert [step for what, step in happened if what == "eval"] == [2, 4, 6]
    assert run.plan.is_over(run.state) and (run.state.best_value, run.state.improved_value) == (0.93, 1.0)
    run, happened, patches = run_of(asked, [], **vars(run.state))
    with patches:
        assert fit(run, StopSignal()) is None
    assert happened == [], "what was over stays over after a resume"


def test_the_value_before_the_first_step_is_what_must_be_improved() -> None:
    run, happened, patches = run_of(plan(eval_every_steps=5, eval_at_start=True, patience=2), [1.0, 1.5, 1.25])
    with patches:
        fit(run, StopSignal())
    assert happened == [("eval", 0), ("eval", 5), ("best", 5), ("eval", 10), ("best", 10)]
    assert run.state.base_value == 1.0 and run.state.evaluations_waited == 2
    assert run.tracker.lines[0] == {"step": 0, "base/val/lm_loss": 1.0}  # type: ignore[attr-defined]


def test_an_evaluation_that_a_signal_came_before_is_made_up_for_at_once() -> None:
    asked = plan(eval_every_steps=4, save_every_eval=False)
    run, happened, patches = run_of(asked, [1.0, 2.0, 3.0], step=4, iteration=2, batches_done=1, evaluated_step=0)
    with patches:
        fit(run, StopSignal())
    assert [step for what, step in happened if what == "eval"] == [4, 8, 10]
    run, happened, patches = run_of(asked, [1.0, 2.0], step=4, iteration=2, batches_done=1, evaluated_step=4)
    with patches:
        fit(run, StopSignal())
    assert [step for what, step in happened if what == "eval"] == [8, 10]
