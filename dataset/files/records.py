"""The data files of a folder or of a repository of the Hub, and their records one after another."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from dataset.files.disk import write_file
from dataset.files.download import HubFile, hub_files
from dataset.files.json_file import read_json
from dataset.files.jsonl import line_counts, numbered_lines, read_blocks
from dataset.files.parquet import count_parquet_records, parquet_records

NAMES_FILE = "names.json"
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")  # of several kinds in one place the first is read

Content = bytes | dict[str, Any]  # a line of JSON, or a record that its file holds in another form
DataFile = Path | HubFile


def visible_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder and its sub-folders, sorted; those in hidden folders are half-finished downloads."""
    found = [path for path in root.rglob("*") if path.is_file() and path.name.endswith(suffixes)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def repository_names(repo: str, choose: Callable[[Sequence[str]], list[str]], folder: Path, by_hand: Path) -> list[str]:
    """The names that `choose` takes, as they were when the download began: `folder` remembers them."""
    known = folder / NAMES_FILE
    if known.is_file():
        return read_json(known, list, "Remove it and run again.")
    _, files = hub_files(repo, by_hand)
    names = choose([name for name in files if not is_outside(name)])
    write_file(known, json.dumps(names))
    return names


def is_outside(name: str) -> bool:
    """Whether a name of the Hub would leave the folder it is put into."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def text_blocks(file: DataFile, on_bytes: Callable[[int], Any] = lambda count: None) -> Iterator[bytes]:
    return read_blocks(file, on_bytes) if isinstance(file, Path) else file.blocks()


def path_of(file: DataFile) -> Path:
    return file if isinstance(file, Path) else file.target


def is_parquet(file: DataFile) -> TypeGuard[Path]:
    return isinstance(file, Path) and file.suffix == ".parquet"


def numbered_records(
    file: DataFile, on_bytes: Callable[[int], Any] = lambda count: None
) -> Iterator[tuple[int, Content]]:
    """(line or row number from 1, what stands there); `on_bytes` is told how much of the file was read."""
    if is_parquet(file):
        yield from enumerate(parquet_records(file), start=1)
        on_bytes(file.stat().st_size)
    else:
        yield from numbered_lines(text_blocks(file, on_bytes))


def record_counts(file: DataFile, on_bytes: Callable[[int], Any]) -> Iterator[int]:
    """Numbers that add up to how many records there are."""
    if is_parquet(file):
        yield count_parquet_records(file)
        on_bytes(file.stat().st_size)
    else:
        yield from line_counts(text_blocks(file, on_bytes))
