"""Opens a run: directory and lock, checkpoint, parts, weights, optimizers, tracker, up to the first step."""

from contextlib import ExitStack
from typing import Any

from torch import nn

from dataset.files.disk import exclusive_lock
from engine.checkpoints.find import TRAINER_FILE
from engine.checkpoints.load import Checkpoint, load_averaged, load_checkpoint, load_weights
from engine.checkpoints.run_directory import checkpoint_to_resume
from engine.checkpoints.save import CheckpointStore
from engine.runtime.agreement import check_facts, check_weights
from engine.runtime.code import code_version
from engine.runtime.devices import Runtime, start_runtime
from engine.train.job import Job, RunStart
from engine.train.loop import Run
from engine.train.plan import TrainState
from engine.train.resume import check_decay, restore, saved_errors, state_of
from engine.train.tracking.backend import TrackedRun
from engine.train.tracking.tracker import Notices, Tracker
from models.ema import WeightAverage


def open_run(job: Job, stack: ExitStack) -> tuple[Run, Notices]:
    """The run as it stands before its first step, new or resumed; `stack` closes what it opens."""
    settings = job.settings
    runtime = start_runtime(settings.device, settings.compile, settings.seed, settings.collective_minutes)
    stack.callback(runtime.close)
    say = Notices(runtime.is_main)
    check_facts(settings.config, runtime)
    directory = job.directory(runtime, say)
    if runtime.is_main:
        stack.enter_context(exclusive_lock(directory.path))
        stack.callback(directory.remove_unused_config)
        job.claim(directory, runtime)
    store = CheckpointStore(directory.path, settings.keep_last) if runtime.is_main else None
    checkpoint = checkpoint_to_resume(settings.resume_from, directory.path, runtime, say)
    if checkpoint is None and settings.resume_from is not None:
        say(f"resume: no checkpoint in {directory.path} yet, starting from the beginning")
    if checkpoint is not None:
        check_decay(checkpoint, settings.config)

    parts = job.compose(RunStart(runtime, directory, checkpoint, say, stack))
    module, plan = parts.task.module, parts.plan
    check_facts({"data": parts.data.checksum, "steps": plan.expected_steps} | parts.meta, runtime)
    parts.meta |= code_version()
    if checkpoint is not None:
        load_weights(module, checkpoint.weights, source=str(checkpoint.path))
    elif settings.start_from:
        say(*start_from(module, load_checkpoint(settings.start_from, say=say)))
    optimizers = job.optimizers(parts, runtime)
    rate = settings.ema_rate
    average = None if rate is None else WeightAverage(module, rate, settings.ema_is_warmed_up, settings.ema_start)

    trainer = None if checkpoint is None else parts.trainer or checkpoint.trainer
    saved = TrainState()
    if checkpoint is not None and trainer is not None:
        with saved_errors(checkpoint.path / TRAINER_FILE):
            saved = state_of(trainer)
    if runtime.is_main:
        job.clear(directory, checkpoint, say)
    tracker = Tracker(
        TrackedRun(directory, job.settings.config, plan.expected_steps, saved.step, plan.log_interval),
        backends=settings.trackers,
        resume_before_evaluation=saved.evaluated_step != saved.step,
        enabled=runtime.is_main,
    )
    stack.callback(tracker.close)
    say.through(tracker)
    run = Run(
        **vars(parts),
        optimizers=optimizers,
        runtime=runtime,
        tracker=tracker,
        store=store,
        run_dir=directory.path,
        average=average,
    )
    if checkpoint is not None and trainer is not None:
        with saved_errors(checkpoint.path / TRAINER_FILE):
            restore(run, trainer, checkpoint.ema)
        run.trainer = None  # its tensors are in the optimizers now
        say(f"resumed from {checkpoint.path}")
        if store is not None:
            store.repair_best(saved.best_step)
    check_weights(module, runtime, "at the start")
    if runtime.is_main:
        directory.write_config()
    say(describe(module, runtime), f"{plan.expected_steps} steps; run directory {directory.path}")
    job.begin(run, checkpoint, say)
    return run, say


def start_from(module: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Take the weights of a checkpoint, the averaged ones where it has them; returns notices."""
    notices = load_averaged(module, checkpoint)
    return [f"weights from {checkpoint.path}{', averaged ones' if checkpoint.ema else ''}", *notices]


# Options of an architecture that no weight's shape shows.
SHAPELESS = [
    *("H_cycles", "L_cycles", "halt_max_steps", "norm", "feed_forward", "latent_init", "injection"),
    *("causal", "prefix_mask", "pos_encodings", "rope_theta"),
]


def notes_on_options(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    """What to say of a checkpoint that is evaluated with other options than it was trained with."""
    trained, asked = (checkpoint.config() or {}).get("arch"), config.get("arch")
    if not isinstance(trained, dict) or not isinstance(asked, dict):
        return []
    differing = [
        f"arch.{name}={asked[name]} instead of {trained[name]}"
        for name in SHAPELESS
        if name in trained and name in asked and trained[name] != asked[name]
    ]
    return [f"warning: {checkpoint.path} was trained otherwise: {', '.join(differing)}"] if differing else []


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """The recursive trunk, and the tables and heads whose size is that of the vocabulary or of the puzzle list."""
    trunk = sum(p.numel() for name, p in module.named_parameters() if "_level." in name)
    total = sum(p.numel() for p in module.parameters())
    puzzles = sum(b.numel() for name, b in module.named_buffers() if name.endswith("puzzle_emb.weights"))
    return {
        "parameters_trunk": trunk,
        "parameters_embedding_and_heads": total - trunk,
        "parameters_puzzle_table": puzzles,
    }


def describe(module: nn.Module, runtime: Runtime) -> str:
    """Sizes and machine in one line."""
    counts = parameter_counts(module)
    numbers = ", ".join(
        f"{counts[key]:,} {key.removeprefix('parameters_').replace('_', ' ')}" for key in counts if counts[key]
    )
    ranks = f", {runtime.world_size} ranks" if runtime.world_size > 1 else ""
    return f"parameters: {numbers}; device {runtime.device}{ranks}, compile {'on' if runtime.use_compile else 'off'}"
