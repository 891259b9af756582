"""The directory of a distillation: what becomes of a former run in it, and the link to its latest checkpoint."""

import errno
import shutil
from pathlib import Path

from engine.checkpoints.load import TRAINER_FILE
from engine.checkpoints.run_directory import LATEST

LATEST_FILE = "checkpoint_latest.pt"
FORMER_FOLDER = "former"
# What one run writes; provenance.jsonl is the history of the directory and stays.
PARTS = ["step_*", "latest", "best", LATEST_FILE, "metrics*.jsonl", "train.log", "config.yaml", "wandb_id"]


def make_room(directory: Path, resumed: Path | None) -> list[str]:
    """Put a former run that is not resumed aside; returns notices."""
    continues = resumed is not None and resumed.resolve().parent == directory.resolve()
    if continues or not any(directory.glob("step_*")):
        return []
    former = directory / FORMER_FOLDER
    numbers = [int(path.name) for path in former.glob("*") if path.name.isdecimal()]
    aside = former / str(max(numbers, default=0) + 1)
    aside.mkdir(parents=True)
    for pattern in PARTS:
        for path in directory.glob(pattern):
            shutil.move(path, aside / path.name)
    return [f"note: {directory} held another run, which is now in {aside}. To resume it instead: --resume-from {aside}"]


def point_at_latest(directory: Path) -> list[str]:
    """Let `checkpoint_latest.pt` be a link that follows `latest`, which each save moves in one step.

    It leads to the trainer state; whatever takes a checkpoint's path takes it for the whole checkpoint. Returns a
    notice where there are no links.
    """
    link = directory / LATEST_FILE
    if link.is_symlink():
        return []
    try:
        link.symlink_to(Path(LATEST) / TRAINER_FILE)
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return [f"note: this file system has no symbolic links, so {link} is missing; use --resume-from {LATEST}"]
    return []
