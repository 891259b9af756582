"""The directory of a run: its name, its config on disk, and the checkpoint that it is resumed from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.load import CONFIG_FILE, Checkpoint, latest_step, load_checkpoint, resolve_checkpoint
from engine.config.schema import RunConfig
from engine.runtime.devices import Runtime

LATEST = "latest"
OTHER_NAME = re.compile(r"checkpoint-(\d+)")  # what a step directory is called elsewhere


@dataclass
class RunDirectory:
    """Where a run writes, its names for tracking services, and the config that is kept there."""

    path: Path
    project: str
    name: str
    config_yaml: str = ""

    def keep(self, config: RunConfig) -> None:
        """Let this be the config, with the names that were decided."""
        names = {"project_name": self.project, "run_name": self.name, "checkpoint_path": str(self.path)}
        self.config_yaml = to_yaml(config.model_copy(update=names).model_dump(mode="json"))

    def write_config(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CONFIG_FILE).write_text(self.config_yaml, encoding="utf-8")

    def remove_unused_config(self) -> None:
        """Remove the config of a run that was refused before it wrote anything else."""
        if [path.name for path in self.path.iterdir()] == [CONFIG_FILE]:
            (self.path / CONFIG_FILE).unlink()


def named_directory(config: RunConfig, arch_label: str, runtime: Runtime, say: Callable[[str], None]) -> RunDirectory:
    """`checkpoint_path`, else `checkpoints/<project>/<run>`, with a name that all ranks share."""
    project = config.project_name or config.default_project_name()
    root = Path("checkpoints") / project
    if config.checkpoint_path:
        path = Path(config.checkpoint_path)
    elif config.resume and not config.run_name:
        path = newest_run(root)
        say(f"resume: run_name is not given, taking the newest run, {path}")
    else:
        name = config.run_name or ""
        if not name and runtime.is_main:
            from coolname import generate_slug

            name = f"{arch_label}-{generate_slug(2)}"
        path = root / shared_text(name, runtime)
    directory = RunDirectory(path, project, path.name)
    directory.keep(config)
    return directory


def start_directory(directory: RunDirectory, resume: bool) -> None:
    """Write the config before anything heavy happens; refuse to write over another run.

    In a resumed run the former config stands until the checkpoint has been seen to fit.
    """
    check_unused(directory, resume)
    if not resume or not (directory.path / CONFIG_FILE).exists():
        directory.write_config()


def check_unused(directory: RunDirectory, resume: bool) -> None:
    if not resume and any(directory.path.glob("step_*")):
        raise ValueError(f"{directory.path} holds checkpoints already. Give resume=true, or another run_name.")


def newest_run(root: Path) -> Path:
    runs = sorted((p for p in root.glob("*") if p.is_dir() and any(p.glob("step_*"))), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise ValueError(f"resume=true: no run with a checkpoint in {root}. Give run_name=..., or resume=false.")
    return runs[-1]


def checkpoint_to_resume(asked: str | None, run_dir: Path, runtime: Runtime) -> Checkpoint | None:
    """The checkpoint with its trainer state, the same on every rank.

    `asked` is a step directory, also by the name checkpoint-<N>; a run directory, which stands for its latest step; a
    file of a checkpoint, such as checkpoint_latest.pt; or "latest", the latest step of `run_dir`. Without it, and for
    "latest" where nothing has been saved yet, None is returned.
    """
    path = latest_in(run_dir, runtime) if asked == LATEST else None if asked is None else step_directory(asked)
    return None if path is None else load_checkpoint(path, with_trainer=True)


def latest_in(run_dir: Path, runtime: Runtime) -> Path | None:
    """The latest complete step of a run directory as rank 0 sees it."""
    step = latest_step(run_dir) if runtime.is_main else None
    name = shared_text("" if step is None else f"step_{step}", runtime)
    return run_dir / name if name else None


def step_directory(asked: str) -> Path:
    path = Path(asked).expanduser()
    if (number := OTHER_NAME.fullmatch(path.name)) and not path.exists():
        path = path.with_name(f"step_{number[1]}")
    step = latest_step(path) if path.is_dir() else None
    return resolve_checkpoint(path) if step is None else path / f"step_{step}"


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
