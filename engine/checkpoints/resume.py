"""The one rule that finds the checkpoint to resume from."""

import re
from pathlib import Path

from engine.checkpoints.load import Checkpoint, latest_step, load_checkpoint, resolve_checkpoint
from engine.checkpoints.run_directory import shared_text
from engine.runtime.devices import Runtime

LATEST = "latest"
OTHER_NAME = re.compile(r"checkpoint-(\d+)")  # what a step directory is called elsewhere


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
