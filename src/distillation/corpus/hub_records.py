"""Reads the records of a repository's data files as they arrive: JSON lines, one JSON array, or parquet."""

import fnmatch
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dataset.files.disk import write_file
from dataset.files.download import find_hub_file, hub_files, only
from dataset.files.json_file import read_json
from dataset.files.json_stream import read_values
from dataset.files.jsonl import read_blocks
from src.distillation.corpus.parquet import import_parquet

NAMES_FILE = "names.json"
ROWS_AT_A_TIME = 1000


def read_records(repo: str, pattern: str, folder: Path, by_hand: Path) -> Iterator[Any]:
    """The records of all files that match, one after the other; only as much is downloaded as is asked for.

    `folder` keeps what was downloaded, so that a later call resumes there. `by_hand` is where a user without a network
    may put the data.
    """
    for number, name in enumerate(_names(repo, pattern, folder, by_hand)):
        target = folder / f"{number:04d}-{Path(name).name}"
        file = target if target.is_file() else find_hub_file(repo, partial(only, repo, name), target)
        if name.endswith(".parquet"):
            yield from _parquet_records(file if isinstance(file, Path) else file.fetch())
        else:
            blocks = read_blocks(file) if isinstance(file, Path) else file.blocks()
            for _, record in read_values(blocks, f"{repo}/{name}"):
                yield record


def _names(repo: str, pattern: str, folder: Path, by_hand: Path) -> list[str]:
    """The files that match, as they were when the download began: `folder` remembers them."""
    known = folder / NAMES_FILE
    if known.is_file():
        return read_json(known, list, "Remove it and run again.")
    _, files = hub_files(repo, by_hand)
    names = sorted(fnmatch.filter(files, pattern))
    if not names:
        raise ValueError(
            f"The repository {repo} holds no file like {pattern}, only {', '.join(sorted(files)[:10])}. Its files were "
            f"renamed: look at its page and put the rows into {by_hand} by hand."
        )
    write_file(known, json.dumps(names))
    return names


def _parquet_records(path: Path) -> Iterator[Any]:
    parquet = import_parquet()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file or is damaged: {error}. Remove it and run again.") from error
