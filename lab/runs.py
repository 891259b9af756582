"""Lists the runs below a directory, each with its best number; reads config.yaml, metrics.jsonl and meta.json alone."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.card.about import UNKNOWN, arch_of, kind_of
from engine.checkpoints.find import CONFIG_FILE, META_FILE, step_of
from engine.config.flags import plain_yaml_options
from engine.train.tracking.metrics_file import METRICS_FILE

COLUMNS = ("run", "kind", "arch", "step", "best", "commit", "age")
TAIL_BYTES = 2**16  # of metrics.jsonl: its last lines say how far the run is


def list_runs(root: Path) -> list[dict[str, str]]:
    """A row for every run, the one that wrote last first."""
    runs = sorted(find_runs(root), key=last_written, reverse=True)
    return [described(run, root) for run in runs]


def find_runs(root: Path) -> Iterator[Path]:
    """Directories with a config of their own that are not the step of a run, nor hidden, as a step is while it is written."""
    for folder, names, files in os.walk(root, followlinks=False):
        names[:] = [name for name in names if step_of(Path(name)) is None and not name.startswith(".")]
        if CONFIG_FILE in files:
            yield Path(folder)


def last_written(run: Path) -> float:
    file = run / METRICS_FILE
    return (file if file.exists() else run / CONFIG_FILE).stat().st_mtime


def described(run: Path, root: Path) -> dict[str, str]:
    config, meta = read_config(run / CONFIG_FILE), read_meta(run)
    planned = meta.get("planned_steps", UNKNOWN)
    best = meta.get("best_value")
    commit = (meta.get("commit") or UNKNOWN)[:8] + ("+" if meta.get("commit_is_dirty") else "")
    return {
        "run": str(run.relative_to(root)),
        "kind": kind_of(config),
        "arch": arch_of(config),
        "step": f"{last_step(run / METRICS_FILE)} of {planned}",
        "best": UNKNOWN if best is None else f"{meta.get('best_metric')} {best:.4g}",
        "commit": commit,
        "age": readable_age(time.time() - last_written(run)),
    }


def read_config(file: Path) -> dict[str, Any]:
    """Nothing where it cannot be read: one damaged run must not hide the others."""
    try:
        return plain_yaml_options(file.read_text(encoding="utf-8"), str(file), "")
    except (OSError, ValueError):
        return {}


def read_meta(run: Path) -> dict[str, Any]:
    """That of the newest checkpoint; nothing where there is none yet."""
    steps = [(number, path) for path in run.glob("step_*") if (number := step_of(path)) is not None]
    for _, path in sorted(steps, reverse=True):
        try:
            found = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def last_step(file: Path) -> int:
    """The step of the last whole line; 0 before there is one."""
    if not file.exists():
        return 0
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = opened.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def readable_age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def table(rows: Sequence[dict[str, str]]) -> str:
    """Columns side by side under their names."""
    lines = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]
    widths = {name: max(len(line[name]) for line in lines) for name in COLUMNS}
    return "\n".join("  ".join(line[name].ljust(widths[name]) for name in COLUMNS).rstrip() for line in lines)
