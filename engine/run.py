"""Runs or evaluates a Job: what entry points call."""

import time
from contextlib import ExitStack
from typing import Any

from engine.runtime.devices import start_runtime
from engine.runtime.signals import StopSignal
from engine.train.evaluate import Report
from engine.train.evaluate import evaluate as evaluate_items
from engine.train.job import Job, RunStart
from engine.train.loop import fit
from engine.train.opening import open_run, start_from
from engine.train.tracking.tracker import Notices


def train(job: Job) -> dict[str, Any] | None:
    """Carry a run out, from the start or from a checkpoint, until it is over or a signal stops it.

    Returns its result on the main rank, None on the others. With `eval_only` nothing is trained.
    """
    if job.settings.eval_only:
        return evaluate(job)
    with ExitStack() as stack:
        run, say = open_run(job, stack)
        first, started = run.state.step, time.monotonic()
        with StopSignal(announce=run.runtime.is_main) as stop:
            report = fit(run, stop)
            if run.store is not None:
                run.store.wait()
        if run.plan.is_over(run.state):
            seconds = time.monotonic() - started
            say(f"done: {run.state.step - first} steps in {seconds:.0f} s, see {run.run_dir}")
        else:
            say(f"stopped after step {run.state.step}; resume with: {job.resume_command(run.run_dir)}")
        result = job.finish(run, report, say)
        return result if run.runtime.is_main else None


def evaluate(job: Job) -> Report | None:
    """Score the held-out data with the weights of a checkpoint; only evaluators and `eval_save_outputs` write files."""
    settings = job.settings
    assert settings.start_from is not None, "the config has been checked"
    with ExitStack() as stack:
        runtime = start_runtime(settings.device, settings.compile, settings.seed)
        stack.callback(runtime.close)
        say = Notices(runtime.is_main)
        directory = job.directory(runtime, say)
        parts = job.compose(RunStart(runtime, directory, None, say, stack))
        data, outputs = parts.data, parts.plan.save_outputs
        if data.eval_items is None:
            raise ValueError(
                "eval_only=true, but there is no held-out data. For puzzles name a data set with a test split in "
                "data_paths_test or hold out training puzzles with eval.validation_split, for conversations raise "
                "dataset.test_ratio."
            )
        say(*start_from(parts.task.module, settings.start_from))
        report = evaluate_items(
            parts.task,
            data.eval_items(),
            data.eval_sets,
            runtime,
            evaluators=data.evaluators,
            save_outputs=outputs,
            output_dir=directory.path if outputs or data.evaluators else None,
            label="eval",
        )
        return report if runtime.is_main else None
