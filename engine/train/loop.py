"""The training loop of every task."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dataset.common import LoaderItem
from engine.checkpoints.save import CheckpointStore
from engine.runtime.agreement import check_weights
from engine.runtime.devices import Runtime
from engine.runtime.signals import CutShortError, StopSignal
from engine.runtime.transfer import to_host
from engine.tasks.gradients import tries
from engine.tasks.protocol import Task, over_ranks
from engine.train.evaluate import Evaluator, Report, evaluate, flat, stateful
from engine.train.optimizers import OptimizerSet
from engine.train.plan import Plan, TrainState, is_due
from engine.train.read_ahead import ReadAhead
from engine.train.speed import Speedometer, expectation
from engine.train.tracking.tracker import Tracker
from models.ema import WeightAverage

ROWS_SQUARE = "puzzle_rows"  # squared norm of the gradient of each rank's puzzle rows, which is no metric


@dataclass(frozen=True)
class RunData:
    """Where items come from."""

    train_items: Callable[[int, int], Iterable[LoaderItem]]  # (iteration, batches to skip) -> items of that iteration
    eval_items: Callable[[], Iterable[LoaderItem]] | None
    num_eval_batches: int | None = None  # of one evaluation on this rank; None: not known
    eval_sets: Sequence[str] = ()
    best_sets: Sequence[str] = ()  # those of eval_sets that decide which checkpoint is best; none: all of them
    evaluators: Sequence[Evaluator] = ()
    checksum: int = 0  # equal where ranks read equal data


@dataclass
class RunParts:
    """What a run consists of."""

    task: Task
    data: RunData
    plan: Plan
    checkpoint_yaml: str  # the config that is kept with every checkpoint
    meta: dict[str, Any] = field(default_factory=dict)  # facts that are kept with every checkpoint
    files: Sequence[Path] = ()  # kept with every checkpoint, such as a tokenizer
    smaller: str = "a smaller model"  # what to take if steps are too slow
    trainer: dict[str, Any] | None = None  # in place of the checkpoint's, where this run resumes under other options


@dataclass(kw_only=True)
class Run(RunParts):
    """A run that has been opened: its parts, and what the engine adds to them."""

    optimizers: OptimizerSet
    runtime: Runtime
    tracker: Tracker
    store: CheckpointStore | None  # on rank 0 only
    run_dir: Path
    average: WeightAverage | None = None
    state: TrainState = field(default_factory=TrainState)
    unlogged: list[tuple[int, int, dict[str, Any], dict[str, float]]] = field(default_factory=list)
    saved_step: int = 0  # the last one that is on disk
    stop: StopSignal = field(default_factory=StopSignal)
    speed: Speedometer = field(init=False)

    def __post_init__(self) -> None:
        self.speed = Speedometer(self.runtime)


def fit(run: Run, stop: StopSignal) -> Report | None:
    """Train, evaluate and save as the plan says, until it is over; returns the last evaluation.

    Raises CutShortError where a signal asks to stop, once the state is saved.
    """
    run.stop = run.task.stop = stop
    with saved_if_cut_short(run):
        state, plan = run.state, run.plan
        if plan.eval_at_start and state.base_value is None:
            measure_base(run)
        report = evaluate_and_save(run, plan.was_evaluation_due(state), False)  # if a signal cut it short
        first = state.step
        while not plan.is_over(state):
            ended = state.iteration
            items = ReadAhead(run.data.train_items(state.iteration, state.batches_done), run.task.prepare)
            for item, opened in run.task.feed(items):
                if state.step == first:
                    run.tracker.print(expectation(run.task, item, first + 1, run.runtime, run.smaller))
                train_step(run, item, items.read_next if run.runtime.device.type == "cuda" else None)
                state.batches_done += opened
                if plan.is_over(state):
                    break
                is_eval, is_save = is_due(state.step, plan.eval_every_steps), is_due(state.step, plan.save_every_steps)
                report = evaluate_and_save(run, is_eval, is_save or (is_eval and plan.save_every_eval)) or report
                if plan.is_over(state):
                    break
            else:
                state.iteration, state.batches_done = state.iteration + 1, 0

            is_last, ends_in_eval = plan.is_over(state), plan.eval_every_steps is None
            is_eval = is_last or (ends_in_eval and ended >= plan.first_eval_iteration)
            report = evaluate_and_save(run, is_eval, is_last or (ends_in_eval and plan.save_every_eval)) or report
        return report


@contextmanager
def saved_if_cut_short(run: Run) -> Iterator[None]:
    """Within, a signal that asks to stop leaves the state of the last whole step on disk."""
    try:
        yield
    except CutShortError as cut:
        run.tracker.print(f"{cut} after step {run.state.step} was cut short; resuming repeats it")
        if run.saved_step != run.state.step:
            save(run)
        raise


def evaluate_and_save(run: Run, is_eval_due: bool, is_save_due: bool) -> Report | None:
    """What is due at this step, which is evaluated once; the best checkpoint so far is saved in any case."""
    state, report, is_best = run.state, None, False
    if is_eval_due and run.data.eval_items is not None and state.evaluated_step != state.step:
        report = evaluate_now(run)
        run.tracker.log(flat(report), state.step)
        state.evaluated_step = state.step
        is_best = is_best_so_far(run, report)
    if is_save_due or is_best or (report is not None and run.plan.is_over(state)):
        save(run, is_best)
    if report is not None or is_save_due:
        run.speed.restart()
    return report


def train_step(run: Run, item: LoaderItem, meanwhile: Callable[[], None] | None = None) -> None:
    """Forward, backward, sum over ranks, and, if all of it is finite, the optimizers.

    The host waits for the device once, and does `meanwhile` before that.
    Raises CutShortError, with everything as it was, if a signal asks one of the ranks to stop.
    """
    state, task, optimizers = run.state, run.task, run.optimizers
    for attempt in tries(task, item, state.step + 1, run.runtime, optimizers.zero_grad, run.tracker.print):
        with attempt:
            sums = task.train_step(item, state.step + 1)
    state.step += 1

    dense = optimizers.dense_gradients()
    run.runtime.all_reduce_sum_(dense)
    squares = optimizers.squares(dense, run.runtime.device)
    if meanwhile is not None:
        meanwhile()
    squares, *values = to_host(squares, *sums.values())
    dense_square = squares[0].item()
    norm = math.sqrt(dense_square) if dense_square >= 0 else math.nan
    sums = dict(zip(sums, values, strict=True))
    task.observe(state.step, sums, norm)
    numbers = over_ranks(sums | {ROWS_SQUARE: squares[1]}, run.runtime)
    others = [numbers.pop(ROWS_SQUARE), *(value for name, value in numbers.items() if name.endswith("loss"))]
    facts = {"grad_norm": norm}
    if math.isfinite(dense_square + sum(others)):
        if run.plan.grad_clip is not None and norm > run.plan.grad_clip:
            torch._foreach_mul_(dense, run.plan.grad_clip / norm)
        facts["lr"] = optimizers.step(task.schedule_step(state.step))
        task.commit()
        state.bad_steps_in_row = 0
        if run.average is not None:
            run.average.update(state.updates)
    else:
        state.freed_rows += task.discard()
        state.bad_steps += 1
        state.bad_steps_in_row += 1
        facts |= {"skipped_steps": state.bad_steps, "freed_rows": state.freed_rows}
    optimizers.zero_grad()

    run.speed.add(item[1], task.flops(item), task.product_dtype)
    run.unlogged.append((state.step, item[2], numbers, facts))
    run.tracker.advance(state.step)
    if is_due(state.step, run.plan.log_interval) or state.bad_steps_in_row:
        flush_log(run)
    if state.bad_steps_in_row >= run.plan.max_bad_steps:
        raise_not_finite(run)


def flush_log(run: Run) -> None:
    """Log every step since the last time, the last one with their speed."""
    speed = run.speed.read() | {"perf/passes": run.task.micro_batches}
    for step, global_batch_size, numbers, facts in run.unlogged:
        report = run.task.train_report(numbers, global_batch_size)
        values = {f"train/{name}": value for name, value in (report | facts).items()}
        run.tracker.log(values | (speed if step == run.state.step else {}), step)
    run.unlogged.clear()


def raise_not_finite(run: Run) -> None:
    """Stop; the last good checkpoint is untouched."""
    good = None
    if run.store is not None:
        run.store.wait()
        good = run.store.latest_step()
    where = f"The last good checkpoint is {run.run_dir}/step_{good}" if good else "No checkpoint had been saved yet"
    raise FloatingPointError(
        f"Loss or gradient was not finite in {run.state.bad_steps_in_row} steps in a row, up to step {run.state.step}. "
        f"{where}. Lower lr, set grad_clip, or look at the data; then resume with resume=true."
    )


def measure_base(run: Run) -> None:
    """Evaluate before the first step; what comes later is to be better."""
    state, name = run.state, run.plan.best_metric
    report = evaluate_now(run)
    state.base_value = state.improved_value = best_metric_of(run, report)
    run.tracker.log({f"base/{set_name}/{name}": metrics[name] for set_name, metrics in report.items()}, state.step)
    run.tracker.print(f"before the first step: {name} {state.base_value}")


def evaluate_now(run: Run) -> Report:
    """Evaluate with the averaged weights, if there are any."""
    flush_log(run)
    assert run.data.eval_items is not None
    with run.average.swapped_in() if run.average is not None else nullcontext():
        return evaluate(
            run.task,
            run.data.eval_items(),
            run.data.eval_sets,
            run.runtime,
            num_batches=run.data.num_eval_batches,
            evaluators=run.data.evaluators,
            save_outputs=run.plan.save_outputs,
            output_dir=run.run_dir,
            label=f"step_{run.state.step}",
            stop=run.stop,
        )


def is_best_so_far(run: Run, report: Report) -> bool:
    """Whether this evaluation beats all before it; remembers its value if so, and how long none improved enough."""
    plan, state = run.plan, run.state
    value = best_metric_of(run, report)
    if value is None:
        known = sorted({metric for metrics in report.values() for metric in metrics})
        run.tracker.print(
            f"best_metric={plan.best_metric} is not among the held-out metrics ({', '.join(known)}): "
            "`best` stays where it is."
        )
        return False
    if not math.isfinite(value):
        run.tracker.print(f"step {state.step}: {plan.best_metric} is {value}, so this step cannot be the best")
    if plan.is_better(value, state.improved_value, by=plan.min_improvement):
        state.improved_value, state.evaluations_waited = value, 0
    else:
        state.evaluations_waited += 1
    if not plan.is_better(value, state.best_value):
        return False
    state.best_value, state.best_step = value, state.step
    return True


def best_metric_of(run: Run, report: Report) -> float | None:
    """The mean of the best metric over the sets that decide; None if no set has it."""
    name, deciding = run.plan.best_metric, run.data.best_sets or run.data.eval_sets
    values = [metrics[name] for set_name, metrics in report.items() if set_name in deciding and name in metrics]
    return sum(values) / len(values) if values else None


def save(run: Run, is_best: bool = False) -> None:
    """Checkpoint this very step; all ranks take part because each holds some rows of the carry."""
    flush_log(run)
    check_weights(run.task.module, run.runtime, f"at step {run.state.step}")
    run.saved_step = run.state.step
    trainer = {
        "state": asdict(run.state),
        "optimizers": run.optimizers.state_dict(),
        "task": run.task.state_dict(),
        "evaluators": {name: evaluator.state_dict() for name, evaluator in stateful(run.data.evaluators).items()},
        "torch_rng": torch.get_rng_state(),
    }
    if run.store is None:
        return
    run.store.save(
        run.state.step,
        model=run.task.module.state_dict(),
        ema=run.average.state_dict() if run.average is not None else None,
        trainer=trainer,
        config_yaml=run.checkpoint_yaml,
        meta=run.meta
        | {"best_metric": run.plan.best_metric, "best_value": run.state.best_value}
        | {"planned_steps": run.plan.expected_steps},
        files=run.files,
    )
    if is_best:
        run.store.mark_best(run.state.step)
