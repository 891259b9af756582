"""The results of a study on disk: a line of JSON a run, to which a later run of the study adds what is missing."""

import json
import sys
from pathlib import Path

from dataset.files.disk import disk_errors
from lab.study.trials import Row


def read_results(path: Path) -> list[Row]:
    """All whole lines; a line that cannot be read is mentioned, and its run is missing."""
    rows = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        row = _row_of(line)
        if row is None:
            print(f"{path}: passing over line {number}, which cannot be read; its run is repeated", file=sys.stderr)
        else:
            rows.append(row)
    return rows


def add_result(path: Path, row: Row) -> None:
    """Append a line; where the last one was cut off, it begins a new one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")


def _row_of(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"variant", "seed", "budget", "metrics"} <= row.keys() else None
