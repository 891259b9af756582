"""Recognises and reads people's conversation files: ShareGPT, Alpaca, OpenAssistant and OpenAI messages."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from dataset.chat.records import Conversation, Record, bounded, conversation_of
from dataset.chat.trees import read_tree_rows, read_trees
from dataset.text.conversation import Turn, make_turn, parse_instruction, parse_message, parse_messages

LOOKED_AT = 20  # records from which a format is recognised

FORMATS: dict[str, tuple[str, ...]] = {  # the shapes of record that each may have
    "sharegpt": ("conversations", "sharegpt list"),
    "alpaca": ("instruction",),
    "openassistant": ("messages", "message list", "message", "tree", "tree row"),
    "openai": ("messages", "message list", "message"),
}
FORMS = (
    "sharegpt: 'conversations' with 'from' and 'value'; alpaca: 'instruction', 'input', 'output'; openassistant: "
    "'messages' with 'role' and 'content', trees with 'replies', or rows with 'message_id' and 'parent_id'; openai: "
    "'messages' with 'role' and 'content'"
)


def read_conversations(records: Iterable[Record], format_name: str) -> Iterator[Conversation]:
    """The conversations of records in the named format; ValueError names the record that is wrong."""
    for (_, shape), group in groupby(records, lambda record: (record.file, _checked_shape(record, format_name))):
        yield from PARSERS[shape](group)


def recognise(records: Iterable[Record]) -> tuple[str, Iterator[Record]]:
    """The format of the first records, and all of the records."""
    remaining = iter(records)
    first = list(islice(remaining, LOOKED_AT))
    if not first:
        raise ValueError(f"There is no record in the input. Expected conversations: {FORMS}.")
    fitting = [{name for name, shapes in FORMATS.items() if _shape(record) in shapes} for record in first]
    common = set.intersection(*fitting)
    likely = [name for name in map(_likely_format, first) if name in common]
    if not likely:
        odd = next(record for end, record in enumerate(first, 1) if not set.intersection(*fitting[:end]))
        raise ValueError(
            f"{odd.place} looks like {_likely_format(odd)}, and {first[0].place} like {_likely_format(first[0])}. "
            "Give --format and the files of one format only."
        )
    # Records that could be OpenAI's do not speak against one that can only be OpenAssistant's.
    name = "openassistant" if "openassistant" in likely else likely[0]
    return name, chain(first, remaining)


def _shape(record: Record) -> str:
    """How a record is built."""
    value = record.value
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        return "sharegpt list" if "from" in value[0] else "message list"
    if isinstance(value, Mapping):
        if "conversations" in value:
            return "conversations"
        if "messages" in value:
            return "messages"
        if "instruction" in value and "output" in value:
            return "instruction"
        if isinstance(value.get("prompt"), Mapping) or "replies" in value:
            return "tree"
        if "message_id" in value:
            return "tree row"
        if "role" in value and ("content" in value or "text" in value):
            return "message"
    raise ValueError(f"{record.place}: found {_described(value)}. Expected one of these: {FORMS}.")


def _likely_format(record: Record) -> str:
    """The one format of those that fit which its authors most likely meant."""
    shape, value = _shape(record), record.value
    if shape in ("messages", "message list", "message"):
        messages = value["messages"] if shape == "messages" else value if shape == "message list" else [value]
        messages = messages if isinstance(messages, list) else []
        odd = any(isinstance(m, Mapping) and (m.get("role") == "prompter" or "text" in m) for m in messages)
        return "openassistant" if odd else "openai"
    return next(name for name, shapes in FORMATS.items() if shape in shapes)


def _checked_shape(record: Record, format_name: str) -> str:
    shape = _shape(record)
    if shape not in FORMATS[format_name]:
        likely = _likely_format(record)
        raise ValueError(
            f"{record.place}: found {_described(record.value)}, which is not {format_name} but looks like {likely}. "
            f"Use --format {likely}, or --format auto."
        )
    return shape


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the fields {', '.join(map(str, list(value)[:8])) or 'none'}"
    if isinstance(value, list):
        return f"a list that begins {str(value[:1])[:60]}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _each(parse: Callable[[Any], list[Turn]], records: Iterable[Record]) -> Iterator[Conversation]:
    """Every record is a conversation."""
    for record in records:
        yield conversation_of(record, partial(parse, record.value))


def _message_list(value: Any) -> list[Turn]:
    """A list of messages, or a record that has one, and perhaps a system prompt beside it."""
    if not isinstance(value, Mapping):
        return parse_messages(value)
    beside = make_turn("system", value.get("system") or value.get("system_prompt"))
    return [beside, *parse_messages(value.get("conversations", value.get("messages")))]


def _single_messages(records: Iterable[Record]) -> Iterator[Conversation]:
    """Records that are messages, with nothing to tell conversations apart: all of a file are one."""
    rows = bounded(records)
    turns = [turn for row in _each(lambda value: [parse_message(value)], rows) for turn in row.turns]
    yield Conversation(rows[0].number, turns)


PARSERS: dict[str, Callable[[Iterable[Record]], Iterator[Conversation]]] = {
    "conversations": partial(_each, _message_list),
    "sharegpt list": partial(_each, _message_list),
    "messages": partial(_each, _message_list),
    "message list": partial(_each, _message_list),
    "instruction": partial(_each, parse_instruction),
    "message": _single_messages,
    "tree": read_trees,
    "tree row": read_tree_rows,
}
