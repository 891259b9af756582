"""The folder of a distillation: what becomes of a former run in it, where a resume begins."""

import errno
import shutil
from pathlib import Path

from engine.checkpoints.load import TRAINER_FILE, latest_step, resolve_checkpoint

LATEST_FILE = "checkpoint_latest.pt"
FORMER_FOLDER = "former"
LATEST = "latest"
# What one run writes; provenance.jsonl is the history of the folder and stays.
PARTS = ("step_*", "latest", "best", LATEST_FILE, "metrics*.jsonl", "train.log", "config.yaml", "wandb_id")


def checkpoint_to_resume(asked: str | None, folder: Path) -> Path | None:
    """The step folder that `asked` means; None without one, and for `latest` where nothing has been saved yet."""
    if asked is None:
        return None
    path = folder if asked == LATEST else Path(asked).expanduser()
    if path.is_dir() and (step := latest_step(path)) is not None:
        return path / f"step_{step}"
    return None if asked == LATEST else resolve_checkpoint(path)


def make_room(folder: Path, resumed: Path | None) -> str | None:
    """Put a former run that is not gone on with aside; returns what to tell about it."""
    goes_on = resumed is not None and resumed.resolve().parent == folder.resolve()
    if goes_on or not any(folder.glob("step_*")):
        return None
    former = folder / FORMER_FOLDER
    numbers = [int(path.name) for path in former.glob("*") if path.name.isdecimal()]
    aside = former / str(max(numbers, default=0) + 1)
    aside.mkdir(parents=True)
    for pattern in PARTS:
        for path in folder.glob(pattern):
            shutil.move(path, aside / path.name)
    return f"note: {folder} held another run, which is now in {aside}. To go on with it instead: --resume-from {aside}"


def point_at_latest(folder: Path) -> str | None:
    """Let `checkpoint_latest.pt` be a link that follows `latest`, which each save moves in one step.

    It leads to the trainer state; whatever takes a checkpoint's path takes it for the whole checkpoint. Returns what to
    tell where there are no links.
    """
    link = folder / LATEST_FILE
    if link.is_symlink():
        return None
    try:
        link.symlink_to(Path(LATEST) / TRAINER_FILE)
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return (
            f"note: this file system has no symbolic links, so there is no {link}; resume with --resume-from {LATEST}"
        )
    return None
