"""Reads the records of a repository's data files as they arrive: JSON lines, one JSON list, or parquet."""

import codecs
import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dataset.files.download import find_hub_file
from dataset.files.jsonl import numbered_lines, read_blocks
from src.distillation.corpus.parquet import import_parquet

NAMES_FILE = "names.json"
ROWS_AT_A_TIME = 1000
MAX_RECORD_CHARS = 1 << 26
BETWEEN_ITEMS = " \t\r\n,"


def read_records(repo: str, pattern: str, folder: Path, by_hand: Path) -> Iterator[Any]:
    """The records of all files that match, one after the other; only as much is downloaded as is asked for.

    `folder` keeps what was downloaded, so that a later call goes on where this one stopped. `by_hand` is where a user
    without a network may put the data.
    """
    for number, name in enumerate(_names(repo, pattern, folder, by_hand)):
        target = folder / f"{number:04d}-{Path(name).name}"
        file = target if target.is_file() else find_hub_file(repo, _same_name(name), target)
        if name.endswith(".parquet"):
            yield from _parquet_records(file if isinstance(file, Path) else file.fetch())
            continue
        blocks = read_blocks(file) if isinstance(file, Path) else file.blocks()
        parse = _list_items if name.endswith(".json") else _lines
        yield from parse(blocks, f"{repo}/{name}")


def _names(repo: str, pattern: str, folder: Path, by_hand: Path) -> list[str]:
    """The files that match, as they were found when the download began."""
    known = folder / NAMES_FILE
    if known.is_file():
        names: list[str] = json.loads(known.read_text(encoding="utf-8"))
        return names
    matching: list[str] = []

    def choose(names: list[str]) -> str:
        matching.extend(sorted(fnmatch.filter(names, pattern)))
        if not matching:
            raise ValueError(
                f"The repository {repo} holds nothing like {pattern}, only {', '.join(sorted(names)[:10])}. Its files "
                "were renamed; look at its page and put the rows into {by_hand} by hand."
            )
        return matching[0]

    find_hub_file(repo, choose, by_hand)
    by_hand.with_name(f"{by_hand.name}.part.json").unlink()  # nothing is downloaded under this name
    known.write_text(json.dumps(matching), encoding="utf-8")
    return matching


def _same_name(wanted: str) -> Callable[[list[str]], str]:
    return lambda names: wanted


def _lines(blocks: Iterable[bytes], source: str) -> Iterator[Any]:
    for number, line in numbered_lines(blocks):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}. The line begins {line[:60]!r}.") from error


def _list_items(blocks: Iterable[bytes], source: str) -> Iterator[Any]:
    """The items of one long JSON list, of which only the current one is in memory."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    parse = json.JSONDecoder().raw_decode
    text, place, is_inside = "", 0, False
    for block in blocks:
        text, place = text[place:] + decode(block), 0
        while True:
            while place < len(text) and text[place] in BETWEEN_ITEMS:
                place += 1
            if place == len(text):
                break
            if not is_inside:
                if text[place] != "[":
                    raise ValueError(f"{source}: expected a JSON list, found {text[place : place + 60]!r}.")
                is_inside, place = True, place + 1
                continue
            if text[place] == "]":
                return
            try:
                item, place = parse(text, place)
            except json.JSONDecodeError as error:
                if len(text) - place > MAX_RECORD_CHARS:
                    raise ValueError(f"{source}: a record is no JSON: {error}.") from error
                break  # its end is in the next block
            yield item
    raise ValueError(f"{source} ends in the middle of its list, at {text[place : place + 60]!r}.")


def _parquet_records(path: Path) -> Iterator[Any]:
    parquet = import_parquet()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no parquet file or is damaged: {error}. Remove it and run again.") from error
