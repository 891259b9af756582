"""What the formats of people's conversation files share: one conversation, and where it came from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from dataset.chat.source import Record
from dataset.text.conversation import Turn, without_empty_system

MAX_MESSAGES = 10_000  # of one conversation or tree; bounds memory where a file is one flat list


@dataclass(frozen=True)
class Conversation:
    number: int  # of its record: decides the split
    place: str  # named in errors
    turns: list[Turn]


def conversation_of(record: Record, parse: Callable[[], list[Turn]]) -> Conversation:
    """The turns that `parse` finds, without empty system turns; what is wrong with them is told with the place."""
    try:
        turns = parse()
    except ValueError as error:
        name = record.value.get("id") if isinstance(record.value, Mapping) else None
        which = f" (id {name!r})" if isinstance(name, (str, int)) else ""
        raise ValueError(f"{record.place}{which}: {error}. Repair or remove the record.") from error
    return Conversation(record.number, record.place, without_empty_system(turns))


def bounded(rows: Iterable[Record]) -> list[Record]:
    """The rows that make up one conversation or tree."""
    found = list(islice(rows, MAX_MESSAGES + 1))
    if len(found) > MAX_MESSAGES:
        raise ValueError(
            f"{found[0].place} begins a list of more than {MAX_MESSAGES} messages that are one conversation or tree. "
            "Give each conversation a list of its own."
        )
    return found
