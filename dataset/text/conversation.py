"""Conversations: a turn, and from the messages of a record to turns; the templates make token ids of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataset.tokenization.protocol import is_unicode

Role = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {  # what data sets call them
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str
    is_trained: bool = False  # whether the model learns to say this; only of answers
    is_null: bool = False  # the record has no text here, not even an empty one


@dataclass(frozen=True)
class EncodedConversation:
    """Ids of a whole conversation up to its last trained token, and which of them are trained."""

    ids: NDArray[np.int32]
    is_trained: NDArray[np.bool_]
    is_truncated: bool


def parse_record(record: Any) -> list[Turn]:
    """The turns of one record of a data set; ValueError says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    if "conversations" in record or "messages" in record:
        return without_empty_system(parse_messages(record.get("conversations", record.get("messages"))))
    if "instruction" in record and "output" in record:
        return without_empty_system(parse_instruction(record))
    return without_empty_system(_parse_pair(record))


def conversation_key(turns: Iterable[Turn]) -> str:
    """What tells a conversation from others: who says what."""
    return "\x1e".join(f"{turn.role}\x1f{turn.text}" for turn in turns)


def question_key(turns: Iterable[Turn]) -> str:
    """What is asked in a conversation, whoever answers it and how."""
    return "\x1e".join(turn.text for turn in turns if turn.role == "user")


def is_in_share(text: str, share: float) -> bool:
    """By a hash of the text alone: under any tokenizer, and copies of a text go the same way."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def without_empty_system(turns: Iterable[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.text or turn.role != "system"]


def has_answer(turns: Iterable[Turn]) -> bool:
    return any(turn.is_trained for turn in turns)


def what_is_missing(turns: Sequence[Turn], needs_answer: bool = True) -> str | None:
    """What makes a conversation nothing to learn from, in the words of a report; None if it is whole."""
    if not turns or (needs_answer and not has_answer(turns)):
        return "without an answer"
    if any(turn.role == "user" and turn.is_null for turn in turns):
        return "without the text of a question"
    return None


def parse_messages(messages: Any) -> list[Turn]:
    if not isinstance(messages, list):
        raise ValueError(f"expected a list of messages, found {type(messages).__name__}")
    return [parse_message(message) for message in messages]


def parse_message(message: Any) -> Turn:
    """The turn of a message: its role under `from` or `role`, its text under `value`, `content` or `text`."""
    if not isinstance(message, Mapping):
        raise ValueError(f"expected a message with 'from' and 'value', found {type(message).__name__}")
    name = message.get("from", message.get("role"))
    if not isinstance(name, str) or name not in ROLES:
        raise ValueError(f"unknown role {name!r}, expected one of {', '.join(ROLES)}")
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"weight {weight!r}, expected 0, 1 or null")
    text = message["value"] if "value" in message else message.get("content", message.get("text"))
    if isinstance(text, list):
        text = "".join(_part(part) for part in text)
    return make_turn(ROLES[name], text, is_trained=weight != 0)


def _part(part: Any) -> str:
    """The text of one part of a message that has several."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise ValueError(f"a message has a part of type {kind!r}, expected text only")
    return part["text"]


def _parse_pair(record: Mapping[str, Any]) -> list[Turn]:
    """The fields of OpenOrca (system_prompt, question, response) and their usual other names."""
    columns: list[tuple[Role, tuple[str, ...]]] = [
        ("system", ("system_prompt", "system")),
        ("user", ("prompt", "question")),
        ("assistant", ("response", "answer")),
    ]
    turns = []
    for role, names in columns:
        found = [name for name in names if name in record]
        if found:
            turns.append(make_turn(role, record[found[0]]))
        elif role != "system":
            raise ValueError(
                f"found the fields {', '.join(map(str, record)) or 'none'}, expected 'conversations' "
                "(from, value), 'messages' (role, content), 'system_prompt', 'question' and 'response' (or 'prompt' and "
                "'answer'), or 'instruction', 'input' and 'output'"
            )
    return turns


def parse_instruction(record: Mapping[str, Any]) -> list[Turn]:
    """The fields of Alpaca: instruction, input, output."""
    parts = [make_turn("user", record.get(name)) for name in ("instruction", "input")]
    text = "\n\n".join(part.text for part in parts if part.text)
    question = Turn("user", text, is_null=all(part.is_null for part in parts))
    return [make_turn("system", record.get("system")), question, make_turn("assistant", record["output"])]


def make_turn(role: Role, text: Any, is_trained: bool = True) -> Turn:
    """An empty answer is nothing to learn."""
    is_null = text is None
    text = "" if is_null else text
    if not isinstance(text, str):
        raise ValueError(f"expected text from the {role}, found {type(text).__name__}")
    if not is_unicode(text):
        raise ValueError(f"the text of the {role} is not valid Unicode (half of a surrogate pair)")
    return Turn(role, text, role == "assistant" and is_trained and bool(text.strip()), is_null)
