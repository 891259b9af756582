"""One run of a study: a model is trained for so many floating point operations and evaluated at every depth."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from engine.build import puzzles as build_puzzles
from engine.build import text as build_text
from engine.build.jobs import HydraJob, InstructJob, PuzzleJob
from engine.build.text import TextSource
from engine.config.check import check
from engine.config.compose import CONFIGS, composed
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig
from engine.run import train
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.persistent_text import PersistentTextTask
from engine.tasks.protocol import Task
from engine.train.job import RunStart
from engine.train.opening import parameter_counts
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

COUNTED_STEPS = 200  # over which the operations of an optimizer step are averaged: its depth may change or be drawn


class StudyJob(InstructJob):
    """Training on a source that is open already and says how many steps are taken."""

    def __init__(self, config: InstructConfig, source: TextSource) -> None:
        super().__init__(config, "text")
        self.source = source

    def open_source(self, start: RunStart) -> TextSource:
        return self.source

    def build_task(self, head: TextLossHead, source: TextSource, runtime: Runtime) -> Task:
        return build_text.text_task_of(self.config, head, runtime, source.total_steps, source.total_rows, None)


class Sized(NamedTuple):
    """A run of so many steps, and the model that it trains."""

    job: HydraJob[Any]
    head: ACTLossHead | TextLossHead
    steps: int
    flops_per_step: float


def train_words(words: Sequence[str], flops: float, folder: str, config_name: str) -> dict[str, Any]:
    """Train on one thread, in a new folder; returns sizes, times and the metrics of every held-out set, none if it diverged."""
    started, cpu_started = time.monotonic(), time.process_time()
    torch.set_num_threads(1)
    config = check(CONFIGS[config_name], composed(config_name, words))
    config = config.model_copy(update={"checkpoint_path": folder})
    runtime = start_runtime(config.device, config.compile, config.seed)
    if isinstance(config, PretrainConfig):
        run = puzzle_run(config, flops, runtime)
    else:
        assert isinstance(config, InstructConfig)
        run = text_run(config, flops, runtime)
    training_started = time.monotonic()
    diverged: dict[str, str] = {}
    try:
        report = train(run.job)
    except FloatingPointError as problem:  # a result too
        report, diverged = {}, {"diverged": str(problem)}
    assert report is not None
    seconds = time.monotonic() - training_started
    facts = {
        "steps": run.steps,
        "flops_per_step": run.flops_per_step,
        "seconds": round(seconds, 1),
        "steps_per_s": run.steps / seconds,
        "whole_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "depth": run.head.model.config.halt_max_steps,
    }
    return parameter_counts(run.head) | facts | diverged | {"metrics": report}


def text_run(config: InstructConfig, flops: float, runtime: Runtime) -> Sized:
    source = build_text.build_text(config, runtime)
    head = build_text.build_text_head(config, source.metadata, runtime)
    per_step = mean_flops_of_step(config, source, runtime)
    steps = max(1, round(flops / per_step))
    config = config.model_copy(update={"max_steps": steps})
    total_rows = source.total_rows
    if head.model.config.recursion == "carry":
        total_rows = round(steps * config.global_batch_size / config.arch.options["halt_max_steps"])
    job = StudyJob(config, replace(source, total_steps=steps, total_rows=total_rows))
    return Sized(job, head, steps, per_step)


def puzzle_run(config: PretrainConfig, flops: float, runtime: Runtime) -> Sized:
    source = build_puzzles.build_puzzles(config, runtime)
    head = build_puzzles.build_model(config.arch, source.metadata, config.global_batch_size, runtime)
    task = build_puzzles.build_task(config, head, source.metadata, runtime, COUNTED_STEPS)
    item = next(iter(source.data.train_items(1, 0)))
    per_step = 0.0
    for step in range(COUNTED_STEPS):
        head.model.inner.depth = head.model.config.depth_at(step / COUNTED_STEPS)
        per_step += task.flops(item) / COUNTED_STEPS
    steps = max(1, round(flops / per_step))
    epochs = math.ceil((steps + 1) / source.steps_per_epoch)
    return Sized(PuzzleJob(config.model_copy(update={"max_steps": steps, "epochs": epochs})), head, steps, per_step)


def mean_flops_of_step(config: InstructConfig, source: TextSource, runtime: Runtime) -> float:
    """Operations of an average optimizer step, at the depths that the run will use."""
    head = build_text.build_text_head(config, source.metadata, runtime)
    task = build_text.text_task_of(config, head, runtime, COUNTED_STEPS, COUNTED_STEPS, None)
    item, _ = next(task.feed(source.data.train_items(1, 0)))
    total = 0.0
    for step in range(COUNTED_STEPS):
        if isinstance(task, PersistentTextTask):
            task.rows_retired = step  # by which it measures progress
        task.start_step(step)
        total += task.flops(item) / COUNTED_STEPS
    return total
