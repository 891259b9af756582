"""The directory of a run: its name, its config on disk, and the checkpoint that it is resumed from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset.files.disk import write_file
from engine.checkpoints.find import CONFIG_FILE, LATEST, all_steps, checkpoints_at
from engine.checkpoints.load import Checkpoint, load_checkpoint, to_stderr
from engine.config.schema import RunConfig
from engine.runtime.devices import Runtime

FAILED = "failed"  # what rank 0 shares in place of the name of a checkpoint
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
        write_file(self.path / CONFIG_FILE, self.config_yaml)

    def remove_unused_config(self) -> None:
        """Remove the config of a run that was refused before it wrote anything else."""
        if [path.name for path in self.path.glob("*")] == [CONFIG_FILE]:
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


def checkpoint_to_resume(
    asked: str | None, run_dir: Path, runtime: Runtime, say: Callable[[str], None] = to_stderr
) -> Checkpoint | None:
    """The checkpoint with its trainer state, the same on every rank.

    `asked` is a step directory, also by the name checkpoint-<N>; a run directory, which stands for its latest step; a
    file of a checkpoint, such as checkpoint_latest.pt; or "latest", the latest step of `run_dir`. Without it, and for
    "latest" where nothing has been saved yet, None is returned. `say` is told which one is taken for a damaged one.
    """
    if asked is None:
        return None
    if asked == LATEST:
        return latest_in(run_dir, runtime, with_trainer=True, say=say)
    return load_checkpoint(renamed(asked), with_trainer=True, prefer=LATEST, say=say)


def latest_in(
    run_dir: Path, runtime: Runtime, *, with_trainer: bool = False, say: Callable[[str], None] = to_stderr
) -> Checkpoint | None:
    """The latest checkpoint of a run directory that rank 0 can load; None if nothing was ever saved there."""
    found, problem = None, None
    if runtime.is_main and (all_steps(run_dir) or (run_dir / LATEST).is_symlink()):
        try:
            found = load_checkpoint(run_dir, with_trainer=with_trainer, prefer=LATEST, say=say)
        except ValueError as error:
            problem = error
    name = shared_text(FAILED if problem else "" if found is None else found.path.name, runtime)
    if name == FAILED:
        raise problem or ValueError(f"Rank 0 found no checkpoint in {run_dir} that it can load.")
    return found if runtime.is_main or not name else load_checkpoint(run_dir / name, with_trainer=with_trainer)


def step_directory(asked: str) -> Path:
    """The checkpoint that is meant, damaged or not."""
    return checkpoints_at(renamed(asked), prefer=LATEST)[0]


def renamed(asked: str) -> Path:
    """The path with checkpoint-<N> as step_<N>, unless there is such a file."""
    path = Path(asked).expanduser()
    if (number := OTHER_NAME.fullmatch(path.name)) and not path.exists():
        path = path.with_name(f"step_{number[1]}")
    return path


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
