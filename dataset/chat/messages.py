"""What the formats of people's conversation files share: roles, one message, one conversation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dataset.chat.source import Record
from dataset.text.conversation import ROLES, Role, Turn, parse_message

CHAT_ROLES: dict[str, Role] = ROLES | {
    "developer": "system",
    "prompter": "user",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
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
    return Conversation(record.number, record.place, [turn for turn in turns if turn.text or turn.role != "system"])


def turn_of(message: Any) -> Turn:
    """A turn of any of the formats: also text under `text`, and text in parts."""
    if isinstance(message, Mapping) and "value" not in message:
        content = message.get("content", message.get("text"))
        if isinstance(content, list):
            content = "".join(_part(part) for part in content)
        message = {**message, "content": content}
    return parse_message(message, CHAT_ROLES)


def bounded(rows: Iterable[Record]) -> list[Record]:
    """The rows that make up one conversation or tree."""
    found = list(islice(rows, MAX_MESSAGES + 1))
    if len(found) > MAX_MESSAGES:
        raise ValueError(
            f"{found[0].place} begins a list of more than {MAX_MESSAGES} messages that are one conversation or tree. "
            "Give each conversation a list of its own."
        )
    return found


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise ValueError(f"a message has a part of type {kind!r}, expected text only")
    return part["text"]
