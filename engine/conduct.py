"""Carries out a composed run: from scratch or from its latest checkpoint, under signal control, to its last report."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from engine.checkpoints.load import load_checkpoint, load_weights
from engine.checkpoints.run_folder import RunFolder, latest_checkpoint, tell
from engine.checkpoints.save import CheckpointStore
from engine.config.schema import RunConfig
from engine.runtime.devices import Runtime
from engine.runtime.signals import StopSignal
from engine.tasks.protocol import Task
from engine.train.evaluate import Report, evaluate
from engine.train.loop import Plan, Run, RunData, TrainState, fit, restore
from engine.train.optimizers import OptimizerSet
from engine.train.tracking import Tracker
from models.ema import WeightAverage


def plan_of(config: RunConfig, total_steps: int, iterations: int, may_exceed: bool = False) -> Plan:
    """`may_exceed`: the number of steps is an estimate, and the run ends with its data."""
    return Plan(
        total_steps=(config.max_steps or sys.maxsize) if may_exceed else total_steps,
        expected_steps=total_steps,
        iterations=iterations,
        first_eval_iteration=config.min_eval_interval + 1,
        save_every_eval=config.checkpoint_every_eval,
        save_interval=config.checkpoint_interval,
        log_interval=config.log_interval,
        grad_clip=config.grad_clip,
        max_bad_steps=config.max_bad_steps,
        best_metric=config.best_metric,
        save_outputs=config.eval_save_outputs,
    )


def train(
    config: RunConfig,
    folder: RunFolder,
    task: Task,
    data: RunData,
    optimizers: OptimizerSet,
    plan: Plan,
    runtime: Runtime,
    files: Sequence[Path] = (),
) -> Report | None:
    """Fit from scratch or from the latest checkpoint, under signal control; returns the last evaluation."""
    store = CheckpointStore(folder.path, config.keep_last) if runtime.is_main else None
    checkpoint = latest_checkpoint(folder.path, runtime) if config.resume else None
    if checkpoint is not None:
        load_weights(task.module, checkpoint.weights, source=str(checkpoint.path))
    elif config.load_checkpoint:
        tell(runtime, *start_from(task.module, config.load_checkpoint))
    average = WeightAverage(task.module, config.ema_rate) if config.ema else None
    saved = TrainState(**checkpoint.trainer["state"]) if checkpoint is not None and checkpoint.trainer else TrainState()
    tracker = Tracker(
        folder.path,
        backends=config.tracker,
        project=folder.project,
        run_name=folder.name,
        config=config.model_dump(mode="json"),
        total_steps=plan.expected_steps,
        resume_step=saved.step,
        resume_before_evaluation=saved.evaluated_step != saved.step,
        enabled=runtime.is_main,
    )
    run = Run(
        task=task,
        data=data,
        optimizers=optimizers,
        plan=plan,
        runtime=runtime,
        tracker=tracker,
        store=store,
        run_dir=folder.path,
        config_yaml=folder.config_yaml,
        average=average,
        meta=parameter_counts(task.module),
        files=files,
    )
    if checkpoint is not None and checkpoint.trainer is not None:
        restore(run, checkpoint.trainer, checkpoint.ema)
        tell(runtime, f"resumed from {checkpoint.path}")
    if config.resume and runtime.is_main:
        folder.write_config()
    try:
        with StopSignal(announce=runtime.is_main) as stop:
            started = time.monotonic()
            report = fit(run, stop)
            if store is not None:
                store.wait()
    finally:
        tracker.close()
    if not plan.is_over(run.state):
        tell(runtime, f"stopped after step {run.state.step}; go on with: {resume_command(folder)}")
        return None
    tell(runtime, f"done: {run.state.step - saved.step} steps in {time.monotonic() - started:.0f} s, see {folder.path}")
    return report


def start_from(module: nn.Module, source: str) -> list[str]:
    """Load the weights of a checkpoint, the averaged ones where it has them; returns notices."""
    checkpoint = load_checkpoint(source)
    averaged = checkpoint.ema or {}
    notices = load_weights(module, checkpoint.weights | averaged, source=str(checkpoint.path))
    return [f"weights from {checkpoint.path}{', averaged ones' if averaged else ''}", *notices]


def resume_command(folder: RunFolder) -> str:
    """The command that was typed, and what it takes to go on."""
    kept = [a for a in sys.argv[1:] if not a.lstrip("+").startswith(("resume=", "run_name=", "checkpoint_path="))]
    arguments = [a.removeprefix("++") for a in kept]
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    program = ["python"] if ranks == "1" else ["torchrun", "--nproc-per-node", ranks]
    return shlex.join([*program, sys.argv[0], *arguments, f"checkpoint_path={folder.path}", "resume=true"])


def evaluate_only(config: RunConfig, task: Task, data: RunData, runtime: Runtime, output_dir: Path) -> Report:
    if data.eval_items is None:
        raise ValueError(
            "eval_only=true, but there is no held-out data. For puzzles name a data set with a test split in "
            "data_paths_test or hold out training puzzles with eval.validation_split, for conversations raise "
            "dataset.test_ratio."
        )
    assert config.load_checkpoint is not None
    tell(runtime, *start_from(task.module, config.load_checkpoint))
    return evaluate(
        task,
        data.eval_items(),
        data.eval_sets,
        runtime,
        evaluators=data.evaluators,
        save_outputs=config.eval_save_outputs,
        output_dir=output_dir if config.eval_save_outputs or data.evaluators else None,
        label="eval",
    )


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
    counts = parameter_counts(module)
    numbers = ", ".join(
        f"{counts[key]:,} {key.removeprefix('parameters_').replace('_', ' ')}" for key in counts if counts[key]
    )
    ranks = f", {runtime.world_size} ranks" if runtime.world_size > 1 else ""
    return f"parameters: {numbers}; device {runtime.device}{ranks}, compile {'on' if runtime.use_compile else 'off'}"


def show_report(report: Report | None, runtime: Runtime) -> None:
    """The result of a program: one JSON object on stdout."""
    if runtime.is_main and report is not None:
        print(json.dumps(report))
