"""The records of people's conversation files, numbered over all files, and the conversation that a record holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dataset.files.json_stream import read_values
from dataset.files.jsonl import read_blocks
from dataset.text.conversation import Turn, without_empty_system

MAX_MESSAGES = 10_000  # of one conversation or tree; bounds memory where a file is one flat list


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


@dataclass(frozen=True)
class Conversation:
    number: int  # of its record: decides the split
    turns: list[Turn]


def conversation_of(record: Record, parse: Callable[[], list[Turn]]) -> Conversation:
    """The turns that `parse` finds, without empty system turns; what is wrong with them is told with the place."""
    try:
        turns = parse()
    except ValueError as error:
        name = record.value.get("id") if isinstance(record.value, Mapping) else None
        which = f" (id {name!r})" if isinstance(name, (str, int)) else ""
        raise ValueError(f"{record.place}{which}: {error}. Repair or remove the record.") from error
    return Conversation(record.number, without_empty_system(turns))


def bounded(rows: Iterable[Record]) -> list[Record]:
    """The rows that make up one conversation or tree."""
    found = list(islice(rows, MAX_MESSAGES + 1))
    if len(found) > MAX_MESSAGES:
        raise ValueError(
            f"{found[0].place} begins a list of more than {MAX_MESSAGES} messages that are one conversation or tree. "
            "Give each conversation a list of its own."
        )
    return found
