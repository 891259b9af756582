"""The face of the engine: a door hands over its config, this room composes the run and carries it out."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import build
from engine.checkpoint import CheckpointError, CheckpointStore
from engine.checkpoint_load import load_checkpoint, load_weights
from engine.evaluate import Report, evaluate
from engine.runtime import Runtime, start_runtime
from engine.schema import ConfigError, PretrainConfig, RunConfig
from engine.stopping import StopSignal
from engine.task import Task
from engine.tracking import Tracker
from engine.train import Plan, Run, RunData, fit, restore
from models.ema import WeightAverage

CONFIG_DIR = Path(__file__).parent.parent / "config"


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra door: unknown keys get past Hydra, so that our own check can name the nearest known one."""
    sys.argv[1:] = [_admitted(argument) for argument in sys.argv[1:]]
    main()


def _admitted(argument: str) -> str:
    """`key=value` becomes `++key=value`, which Hydra accepts for known and unknown keys alike; choices stay."""
    key, equals, _ = argument.lstrip("+").partition("=")
    is_choice = (CONFIG_DIR / key.partition("@")[0]).is_dir()
    if not equals or argument.startswith(("-", "~")) or is_choice or key.startswith("hydra"):
        return argument
    return "++" + argument.lstrip("+")


def guarded(action: Callable[[], None]) -> None:
    """Faults that a user can mend end in their own words and exit code 1, without a traceback."""
    try:
        action()
    except (ValueError, CheckpointError, FloatingPointError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None


def pretrain(hydra_config: Any) -> None:
    """Train on puzzles, or evaluate a checkpoint on them."""
    guarded(lambda: _pretrain(*resolved(hydra_config)))


def resolved(hydra_config: Any) -> tuple[dict[str, Any], str]:
    """Plain values, and the name of the chosen architecture."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        data = OmegaConf.to_container(hydra_config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).replace("\n", " ")]) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, HydraConfig.get().runtime.choices.get("arch", "model")


def _pretrain(data: dict[str, Any], arch_label: str) -> None:
    config = build.check(PretrainConfig, data)
    assert isinstance(config, PretrainConfig)
    runtime = start_runtime(config.device, config.compile, config.seed)
    try:
        folder = RunFolder.open(config, config.default_project_name(), arch_label, runtime)
        source = build.build_puzzles(config, runtime)
        head = build.build_model(config.arch, source.metadata, config.global_batch_size // runtime.world_size, runtime)
        task = build.build_task(config, head, runtime)
        if config.load_checkpoint:
            tell(runtime, *build.start_from(head, config.load_checkpoint))
        if runtime.use_compile:
            build.compile_step(head)
        if config.eval_only:
            show_report(evaluate_only(config, task, source.data, runtime, folder.path), runtime)
            return
        tell(runtime, describe(head, runtime), f"{source.total_steps} steps; run folder {folder.path}")
        optimizers = build.build_optimizers(config, head, runtime, source.total_steps)
        plan = plan_of(config, source.total_steps, source.iterations)
        train(config, folder, task, source.data, optimizers, plan, runtime)
    finally:
        runtime.close()


@dataclass(frozen=True)
class RunFolder:
    """`checkpoints/<project>/<run>` and the config that is written into it before anything heavy happens."""

    path: Path
    project: str
    name: str
    config_yaml: str

    @classmethod
    def open(cls, config: RunConfig, default_project: str, arch_label: str, runtime: Runtime) -> "RunFolder":
        project = config.project_name or default_project
        root = Path("checkpoints") / project
        if config.checkpoint_path:
            path = Path(config.checkpoint_path)
        elif config.resume and not config.run_name:
            path = newest_run(root)
            tell(runtime, f"resume: run_name is not given, taking the newest run, {path}")
        else:
            name = config.run_name or (f"{arch_label}-{slug()}" if runtime.is_main else "")
            path = root / shared_text(name, runtime)
        config = config.model_copy(
            update={"project_name": project, "run_name": path.name, "checkpoint_path": str(path)}
        )
        config_yaml = to_yaml(config.model_dump(mode="json"))
        if runtime.is_main and not config.eval_only:
            if not config.resume and any(path.glob("step_*")):
                raise ValueError(
                    f"The run folder {path} holds checkpoints already. Go on with resume=true, or choose another run_name."
                )
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(config_yaml)
        return cls(path, project, path.name, config_yaml)


def newest_run(root: Path) -> Path:
    runs = sorted((p for p in root.glob("*") if p.is_dir() and any(p.glob("step_*"))), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise ValueError(
            f"resume=true: no run with a checkpoint in {root}. Give run_name=..., or start without resume."
        )
    return runs[-1]


def slug() -> str:
    from coolname import generate_slug

    return str(generate_slug(2))


def shared_text(text: str, runtime: Runtime) -> str:
    """Rank 0's text on every rank."""
    letters = torch.zeros(256, dtype=torch.uint8, device=runtime.device)
    encoded = text.encode()[:256]
    letters[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    runtime.broadcast_([letters])
    return bytes(letters.tolist()).rstrip(b"\0").decode()


def to_yaml(data: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(data))


def plan_of(config: RunConfig, total_steps: int, iterations: int) -> Plan:
    return Plan(
        total_steps=total_steps,
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
    optimizers: Any,
    plan: Plan,
    runtime: Runtime,
    files: Sequence[Path] = (),
) -> None:
    """Fit from scratch or from the latest checkpoint, under signal control."""
    average = WeightAverage(task.module, config.ema_rate) if config.ema else None
    store = CheckpointStore(folder.path, config.keep_last) if runtime.is_main else None
    checkpoint = None
    if config.resume:
        checkpoint = latest_checkpoint(folder.path, runtime)
        if checkpoint is not None:
            load_weights(task.module, checkpoint.weights, source=str(checkpoint.path))
    start_step = checkpoint.trainer["state"]["step"] if checkpoint is not None and checkpoint.trainer else 0
    tracker = Tracker(
        folder.path,
        backends=config.tracker,
        project=folder.project,
        run_name=folder.name,
        config=config.model_dump(mode="json"),
        total_steps=plan.total_steps,
        resume_step=start_step,
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
    try:
        with StopSignal() as stop:
            started = time.monotonic()
            report = fit(run, stop)
            if store is not None:
                store.wait()
    finally:
        tracker.close()
    if not plan.is_over(run.state):
        tell(runtime, f"stopped after step {run.state.step}; go on with: {resume_command(folder)}")
        return
    tell(runtime, f"done: {run.state.step - start_step} steps in {time.monotonic() - started:.0f} s, see {folder.path}")
    if report is not None:
        show_report(report, runtime)


def latest_checkpoint(path: Path, runtime: Runtime) -> Any:
    """The newest complete checkpoint of a run folder, or None with a notice."""
    steps = CheckpointStore(path).latest_step() if path.is_dir() else None
    if steps is None:
        tell(runtime, f"resume: no checkpoint in {path} yet, starting from the beginning")
        return None
    return load_checkpoint(path / f"step_{steps}", with_trainer=True)


def resume_command(folder: RunFolder) -> str:
    """The command that was typed, and what it takes to go on."""
    kept = [a for a in sys.argv[1:] if not a.lstrip("+").startswith(("resume=", "run_name=", "checkpoint_path="))]
    arguments = [a.removeprefix("++") for a in kept]
    where = f"checkpoint_path={folder.path}"
    return shlex.join(["python", Path(sys.argv[0]).name, *arguments, where, "resume=true"])


def evaluate_only(config: RunConfig, task: Task, data: RunData, runtime: Runtime, output_dir: Path) -> Report:
    if data.eval_items is None:
        raise ValueError(
            "eval_only=true, but there is no held-out data. Name a data set with a test split in data_paths_test."
        )
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


def show_report(report: Report, runtime: Runtime) -> None:
    """The result of a program: one JSON object on stdout."""
    if runtime.is_main:
        print(json.dumps(report))


def tell(runtime: Runtime, *lines: str) -> None:
    if runtime.is_main:
        for line in lines:
            print(line, file=sys.stderr)


def bench_train(overrides: Sequence[str], *, positions: int, vocab_size: int, steps: int) -> dict[str, Any]:
    """Time training steps of `cfg_pretrain` with these overrides."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from engine import bench

    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        data = OmegaConf.to_container(compose("cfg_pretrain", [_admitted(o) for o in ("evaluators=[]", *overrides)]), resolve=True)
    assert isinstance(data, dict)
    config = build.check(PretrainConfig, {str(key): value for key, value in data.items()})
    assert isinstance(config, PretrainConfig)
    return bench.bench_train(config, positions=positions, vocab_size=vocab_size, steps=steps)
