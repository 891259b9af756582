"""Runs or evaluates a Job: what entry points call."""

import signal
import time
from contextlib import ExitStack, suppress
from typing import Any

from engine.card.card import write_card
from engine.checkpoints.find import BEST, pointed_folder
from engine.checkpoints.load import load_checkpoint
from engine.runtime.devices import start_runtime
from engine.runtime.signals import CutShortError, StoppedError, StopSignal
from engine.train.evaluate import Report
from engine.train.evaluate import evaluate as evaluate_items
from engine.train.job import Job, RunStart
from engine.train.loop import Run, fit
from engine.train.opening import notes_on_options, open_run, start_from
from engine.train.tracking.metrics_file import last_evaluation
from engine.train.tracking.tracker import Notices

LARGE_SHARE = 0.1  # of the start in averaged weights; more than that is reported


def train(job: Job) -> dict[str, Any] | None:
    """Carry a run out, from the start or from a checkpoint, until it is over.

    Returns its result on the main rank, None on the others. Raises StoppedError if a signal stopped it. With `eval_only`
    nothing is trained.
    """
    if job.settings.eval_only:
        return evaluate(job)
    with ExitStack() as stack:
        run, say = open_run(job, stack)
        first, started, was_over = run.state.step, time.monotonic(), run.plan.is_over(run.state)
        with StopSignal(announce=run.runtime.is_main) as stop:
            report, is_over = None, False
            with suppress(CutShortError):
                report, is_over = fit(run, stop), True
            if run.store is not None:
                run.store.wait()
        if not is_over:
            told = f"stopped after step {run.state.step}; resume with: {job.resume_command(run.run_dir)}"
            say(told)
            run.tracker.close()
            run.runtime.barrier()  # torchrun ends all ranks as soon as one has left
            raise StoppedError(told, stop.number or signal.SIGTERM)
        run.tracker.complete()
        if was_over:
            say(*about_finished(run), f"to train on raise {job.settings.lengths} in: {job.resume_command(run.run_dir)}")
        else:
            seconds = time.monotonic() - started
            say(f"done: {run.state.step - first} steps in {seconds:.0f} s, see {run.run_dir}", *notice_of_start(run))
        result = job.finish(run, report, say)
        if not run.runtime.is_main:
            return None
        try:
            write_card(job, run)
        except OSError as problem:  # a full disk, say; the run itself is whole
            say(f"note: the card of the run could not be written: {problem}")
        return result


def about_finished(run: Run) -> list[str]:
    """What to say of a run that had nothing left to do."""
    state, best = run.state, pointed_folder(run.run_dir, BEST)
    lines = [f"this run was finished before: it ended at step {state.step}, see {run.run_dir}"]
    if state.best_value is not None and best is not None:
        lines.append(f"best {run.plan.best_metric} {state.best_value:.5g}, kept in {best.name}")
    last = last_evaluation(run.run_dir)
    numbers = [f"{key} {value:.5g}" for key, value in last.items() if key.count("/") == 1 and value is not None]
    return [*lines, f"last evaluation, of step {last['step']}: {', '.join(numbers)}"] if last else lines


def notice_of_start(run: Run) -> list[str]:
    """What to say if the averaged weights are still much like those that the run began with."""
    average, updates = run.average, run.state.updates
    if average is None or updates == 0 or (share := average.share_of_start(updates)) <= LARGE_SHARE:
        return []
    return [
        f"warning: {share:.0%} of the averaged weights, with which the run was evaluated, are still those of its start "
        f"({updates} steps, ema_rate={average.rate}). Train longer, set ema_rate to {LARGE_SHARE ** (1 / updates):.3g} "
        "or less, or set ema=false."
    ]


def evaluate(job: Job) -> Report | None:
    """Score the held-out data with the weights of a checkpoint; only evaluators and `eval_save_outputs` write files."""
    settings = job.settings
    assert settings.start_from is not None, "the config has been checked"
    with ExitStack() as stack:
        runtime = start_runtime(settings.device, settings.compile, settings.seed, settings.collective_minutes)
        stack.callback(runtime.close)
        say = Notices(runtime.is_main)
        checkpoint = load_checkpoint(settings.start_from, say=say)
        job.check_held_out(checkpoint)
        directory = job.directory(runtime, say)
        parts = job.compose(RunStart(runtime, directory, None, say, stack))
        data, outputs = parts.data, parts.plan.save_outputs
        if data.eval_items is None:
            raise ValueError(f"eval_only=true, but there is no held-out data. To have some, {settings.to_hold_out}.")
        say(*start_from(parts.task.module, checkpoint), *notes_on_options(checkpoint, settings.config))
        report = evaluate_items(
            parts.task,
            data.eval_items(),
            data.eval_sets,
            runtime,
            num_batches=data.num_eval_batches,
            evaluators=data.evaluators,
            save_outputs=outputs,
            output_dir=directory.path if outputs or data.evaluators else None,
            label="eval",
        )
        return report if runtime.is_main else None
