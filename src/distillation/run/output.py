"""Where a distillation writes: a directory of its own, also where output_dir holds another run."""

import errno
import shutil
from collections.abc import Iterator
from itertools import chain, count, takewhile
from pathlib import Path

from engine.checkpoints.find import LATEST, TRAINER_FILE
from engine.checkpoints.run_directory import step_directory
from src.distillation.config import DistillConfig
from src.distillation.run.provenance import last_mode

LATEST_FILE = "checkpoint_latest.pt"
FORMER_FOLDER = "former"
# What one run writes; provenance.jsonl is the history of the directory and stays.
PARTS = ["step_*", "latest", "best", LATEST_FILE, "metrics*.jsonl", "train.log", "config.yaml", "wandb_id"]


def run_path(config: DistillConfig) -> Path:
    """`output_dir`, or the directory beside it that a run is resumed in, or a free one for a new run."""
    asked = Path(config.output_dir)
    starts_with_text = config.pretrain_ce_only and config.resume_from is None and last_mode(asked) not in (None, "ce")
    if config.resume_from == LATEST or (starts_with_text if config.replace is None else config.replace):
        return asked
    if config.resume_from is not None:
        home = step_directory(config.resume_from).resolve().parent
        if here := next((path for path in runs_of(asked) if path.resolve() == home), None):
            return here
    return next(path for path in chain((asked,), _beside(asked)) if not _holds_run(path))


def runs_of(directory: Path) -> list[Path]:
    """Which of this directory and those that were taken beside it hold runs."""
    beside = takewhile(Path.exists, _beside(directory))
    return [path for path in (directory, *beside) if _holds_run(path)]


def make_room(directory: Path, resumed: Path | None) -> list[str]:
    """Put a former run that is not resumed aside; returns notices."""
    continues = resumed is not None and resumed.resolve().parent == directory.resolve()
    if continues or not _holds_run(directory):
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


def _beside(directory: Path) -> Iterator[Path]:
    return (Path(f"{directory}-{number}") for number in count(2))


def _holds_run(directory: Path) -> bool:
    return any(directory.glob("step_*"))
