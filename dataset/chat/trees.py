"""From OpenAssistant's trees of messages to conversations.

A tree becomes one conversation for every way from its root to a leaf. Of several answers to one message the best ranked
is taken, of several users' messages all are followed; an answer that ways share is trained in the first of them only.
All ways of a tree have the number of its record, so that they go into the same split.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from dataset.chat.records import MAX_MESSAGES, Conversation, Record, bounded, conversation_of
from dataset.text.conversation import ROLES, Turn, parse_message

Message = Mapping[str, Any]


def read_trees(records: Iterable[Record]) -> Iterator[Conversation]:
    """Trees with `replies`; the root may stand under `prompt`."""
    for record in records:
        prompt = record.value.get("prompt")
        yield from _ways(record, prompt if isinstance(prompt, Mapping) else record.value, _replies)


def read_tree_rows(records: Iterable[Record]) -> Iterator[Conversation]:
    """Rows of one tree stand together: they share a tree's id, or follow a row without a parent."""
    begun = 0

    def tree(row: Record) -> Any:
        nonlocal begun
        begun += row.value.get("parent_id") is None
        return row.value.get("message_tree_id") or begun

    for _, group in groupby(records, tree):
        rows = bounded(group)
        replies: dict[str, list[Message]] = {_message_id(row): [] for row in rows}
        for row in rows:
            parent = row.value.get("parent_id")
            if parent is None:
                continue
            if not isinstance(parent, str) or parent not in replies:
                raise ValueError(
                    f"{row.place}: the message {row.value['message_id']!r} answers {parent!r}, which is not among the "
                    f"{len(rows)} rows of its tree that stand together. Sort the rows by tree, or use the file of trees."
                )
            replies[parent].append(row.value)
        for row in rows:
            if row.value.get("parent_id") is None:
                yield from _ways(row, row.value, partial(_replies_by_id, replies))


def _message_id(row: Record) -> str:
    found = row.value["message_id"]
    if not isinstance(found, str):
        raise ValueError(f"{row.place}: found the message_id {found!r}, expected text. Repair or remove the row.")
    return found


def _replies_by_id(replies: Mapping[str, list[Message]], message: Message) -> list[Message]:
    return replies[message["message_id"]]


def _replies(message: Message) -> list[Any]:
    replies = message.get("replies")
    return replies if isinstance(replies, list) else []


def _ways(record: Record, root: Message, replies: Callable[[Message], list[Any]]) -> Iterator[Conversation]:
    trained: set[int] = set()  # messages by identity, which holds as long as the tree is in memory
    open_ways: list[tuple[Message, ...]] = [] if root.get("deleted") else [(root,)]
    while open_ways:
        way = open_ways.pop()
        if len(way) > MAX_MESSAGES:
            raise ValueError(f"{record.place}: a message is its own reply, or the tree is too deep. Remove the tree.")
        following = _followed(replies(way[-1]))
        open_ways.extend((*way, reply) for reply in reversed(following))
        if not following:
            yield conversation_of(record, partial(_turns, way, trained))
            trained.update(map(id, way))


def _turns(way: tuple[Message, ...], trained: set[int]) -> list[Turn]:
    turns = [parse_message(message) for message in way]
    return [
        replace(turn, is_trained=turn.is_trained and id(message) not in trained)
        for turn, message in zip(turns, way, strict=True)
    ]


def _followed(replies: list[Any]) -> list[Message]:
    """The replies that a conversation continues with: all of users, the best ranked of the assistant."""
    alive = [reply for reply in replies if isinstance(reply, Mapping) and not reply.get("deleted")]
    is_answer = [ROLES.get(str(reply.get("role"))) == "assistant" for reply in alive]
    answers = [reply for reply, answers in zip(alive, is_answer, strict=True) if answers]
    best = min(answers, key=_rank, default=None)
    return [reply for reply, answers in zip(alive, is_answer, strict=True) if not answers or reply is best]


def _rank(reply: Message) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, (int, float)) else float("inf")
