"""metrics.jsonl: one line of JSON for every step and evaluation, which a resumed run continues without a seam."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
FORMER_METRICS_FILE = "metrics.previous.jsonl"


class MetricsFile:
    """Lines after `resume_step` are dropped; a new run starts a new file.

    `before_evaluation`: the run resumes between that step and its evaluation, if there is one, and writes that again.
    """

    def __init__(self, run_dir: Path, resume_step: int, before_evaluation: bool) -> None:
        self.path = run_dir / METRICS_FILE
        _cut_after(self.path, resume_step, before_evaluation)
        self._file = self.path.open("ab", buffering=0)

    def write(self, metrics: dict[str, float | int], step: int) -> None:
        values = {key: value if isinstance(value, int) else float(value) for key, value in metrics.items()}
        nonfinite = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {key: None if key in nonfinite else value for key, value in values.items()}
        if nonfinite:
            line["nonfinite"] = nonfinite
        rest = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as problem:
            advice = f"{problem.strerror} (metrics of step {step}); make room, then resume with resume=true"
            raise OSError(problem.errno, advice, str(self.path)) from problem

    def close(self) -> None:
        self._file.close()


def last_evaluation(run_dir: Path) -> dict[str, Any]:
    """The line of the last evaluation in the metrics of a run; nothing if there is none."""
    path, found = run_dir / METRICS_FILE, {}
    if path.is_file():
        for _, values in read_lines(path):
            names = [key for key in values if "/" in key]
            if names and not any(name.startswith(("train/", "base/")) for name in names):
                found = values
    return found


def _cut_after(path: Path, step: int, before_evaluation: bool) -> None:
    """Drop the lines that a resumed run writes again and what a kill left half-written."""
    if not path.exists():
        return
    if step == 0:
        path.replace(path.with_name(FORMER_METRICS_FILE))
        return
    kept, reached = 0, 0
    for end, found in read_lines(path):
        is_repeated = found["step"] == step and before_evaluation and not any(key.startswith("train/") for key in found)
        if reached <= found["step"] <= step and not is_repeated:  # others may have a damaged number
            kept, reached = end, found["step"]
    with path.open("r+b") as file:
        file.truncate(kept)  # one atomic operation, which a full disk allows too
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each line the byte where it ends, and what it holds; one that cannot be read is passed over and mentioned."""
    end, damaged = 0, []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # it is just being written, or a kill left it
                end += len(line)
                if (found := _metrics_of(line)) is None:
                    damaged.append(str(number))
                else:
                    yield end, found
    finally:
        if damaged:
            more = ", ..." if len(damaged) > 5 else ""
            print(f"{path}: passing over line {', '.join(damaged[:5])}{more}, which cannot be read", file=sys.stderr)


def _metrics_of(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None
