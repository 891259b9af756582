"""Finds checkpoints: what a path means, which steps of a run are whole, and what to take in place of a damaged one."""

import glob
import json
import os
import re
from pathlib import Path, PurePath

MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_FILE = "trainer.pt"
REST_FILE = "rest.safetensors"  # of an exported model: what the class of the other program has no place for
CONFIG_FILE = "config.yaml"
META_FILE = "meta.json"
BEST, LATEST = "best", "latest"  # links in a run directory

# These must be exactly what was written; a config file may be edited by hand.
EXACT_FILES = (MODEL_FILE, EMA_FILE, TRAINER_FILE, REST_FILE)


def step_of(path: PurePath) -> int | None:
    """The step that a name like step_120 stands for, or None for any other name."""
    match = re.fullmatch(r"step_(\d+)", path.name)
    return int(match[1]) if match else None


def find_damage(folder: Path) -> str | None:
    """What keeps a step folder from being whole, or None; file contents are not read."""
    if not folder.exists():
        return f"it is a link to {os.readlink(folder)}" if folder.is_symlink() else "it does not exist"
    try:
        recorded = json.loads((folder / META_FILE).read_text(encoding="utf-8"))["files"]
        for name in recorded:
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                return f"{META_FILE} names {name!r}, which cannot be a file of this folder"
        sizes = {name: int(entry["size"]) for name, entry in recorded.items() if entry["sha256"]}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if name in EXACT_FILES and path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        return f"{META_FILE} is missing or unreadable ({problem})"
    return None


def all_steps(run_dir: Path) -> dict[int, Path]:
    """Every step folder of a run, whole or not, by step in rising order."""
    numbered = sorted((step, path) for path in run_dir.glob("step_*") if (step := step_of(path)) is not None)
    return {step: path for step, path in numbered if path.is_dir()}


def complete_steps(run_dir: Path) -> dict[int, Path]:
    """Every step folder of a run that is whole, by step in rising order."""
    return {step: path for step, path in all_steps(run_dir).items() if find_damage(path) is None}


def latest_step(run_dir: Path) -> int | None:
    """The step saved last; what killed writes left does not count."""
    steps = complete_steps(run_dir)
    pointed = pointed_folder(run_dir, LATEST)
    step = None if pointed is None else step_of(pointed)
    return step if step in steps else max(steps, default=None)


def pointed_folder(run_dir: Path, name: str) -> Path | None:
    """The step folder that `best` or `latest` points at, which may be gone; what leads nowhere else stands for itself."""
    link = run_dir / name
    if link.is_symlink():
        target = run_dir / os.readlink(link)
        return link if step_of(target) is None else target
    return link if link.is_dir() else None


def checkpoints_at(path: str | Path, *, newest: bool = False, prefer: str = BEST) -> list[Path]:
    """The step folder, or the file written by torch.save, that a path or a glob pattern means.

    A run folder means its `best` step, else its `latest` one, which may be preferred; what follows in the list is to be
    taken where that is damaged. A pattern must match one checkpoint, unless newest picks.
    """
    given = Path(path).expanduser()
    if given.exists():
        return _existing(given, prefer)
    found = [Path(name) for name in sorted(glob.glob(str(given)))]
    usable = [path for path in found if (_is_folder(path) if path.is_dir() else step_of(path) is not None)]
    choices = {os.path.realpath(those[0]): those for those in (_existing(path, prefer) for path in usable)}
    if not choices:
        raise ValueError(f"There is no checkpoint at {given}. {_surroundings(given)}")
    if len(choices) > 1 and not newest:
        names = ", ".join(sorted(choices))
        raise ValueError(f"{given} matches {len(choices)} checkpoints; name one of them: {names}.")
    return [each for those in sorted(choices.values(), key=_time_written, reverse=True) for each in those]


def _existing(path: Path, prefer: str) -> list[Path]:
    if path.is_file():
        file = path.resolve()  # a link to a part of a checkpoint stands for the checkpoint
        is_part = file.name in EXACT_FILES and (file.parent / META_FILE).is_file()
        return [file.parent if is_part else path]
    if step_of(path) is not None or (path / META_FILE).exists():
        return [pointed_folder(path.parent, path.name) or path]
    best = pointed_folder(path, BEST) if prefer == BEST else None
    latest = pointed_folder(path, LATEST)
    reached = None if latest is None else step_of(latest)
    steps = all_steps(path)
    # Steps beyond the latest belong to a run that was left.
    falling = sorted(steps, key=lambda step: (reached is None or step <= reached, step), reverse=True)
    found = [each for each in (best, latest, *(steps[step] for step in falling)) if each is not None]
    if not found:
        raise ValueError(f"There is no checkpoint in {path}. {_surroundings(path)}")
    return list(dict.fromkeys(found))


def _is_folder(path: Path) -> bool:
    """Whether this is the folder of a checkpoint or of a run that has one."""
    return step_of(path) is not None or (path / META_FILE).exists() or bool(all_steps(path))


def _time_written(checkpoints: list[Path]) -> int:
    first = checkpoints[0]
    written = first / META_FILE if (first / META_FILE).is_file() else first
    return written.stat().st_mtime_ns if written.exists() else 0


def _surroundings(path: Path) -> str:
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return (
        f"{folder} holds {listing(folder)}. Give a step folder (step_<N>), a run folder that holds step folders, "
        "or a state dict written by torch.save."
    )


def listing(folder: Path, limit: int = 20) -> str:
    """What lies in a folder, for messages."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
