"""The records of input files, numbered over all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.files.json_stream import read_values
from dataset.files.jsonl import read_blocks


@dataclass(frozen=True)
class Record:
    number: int  # over all files, from 0
    file: Path
    place: str  # in words, for errors
    value: Any


def check_files(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ValueError(f"The input file {path} {what}. Give the path of a JSON or JSON Lines file.")


def read_records(paths: Sequence[Path], on_bytes: Callable[[int], Any] = lambda count: None) -> Iterator[Record]:
    """The records of all files in order; `on_bytes` is told how much of the files themselves was read."""
    number = 0
    for path in paths:
        for place, value in read_values(read_blocks(path, on_bytes), str(path)):
            yield Record(number, path, f"{path}, {place}", value)
            number += 1
