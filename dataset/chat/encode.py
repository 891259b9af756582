"""From conversations to documents of one split or the other, in several processes where that pays."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dataset.chat.messages import Conversation
from dataset.chat.template import ChatEncoder
from dataset.files.jsonl import hash_fraction
from dataset.text.conversation import EncodedConversation, has_answer
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.text.token_store import EncodedDocuments, join_documents
from dataset.tokenization.special_tokens import load_chat_tokenizer

CHUNK_CHARACTERS = 1 << 19  # bounds what waits for the processes
CONVERSATION_CHARACTERS = 1 << 10  # what a conversation counts beside its text
ALONE_CHUNKS = 8  # a smaller corpus is encoded before processes have started


@dataclass
class SplitReport:
    """What became of the conversations of a split."""

    conversations: int = 0  # kept ones
    documents: int = 0  # more than conversations where long ones were split
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0  # would be trained if nothing were too long
    truncated: int = 0
    divided: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    longest: int = 0
    rows: int = 0  # known when they are written

    def add(self, other: "SplitReport") -> None:
        self.conversations += other.conversations
        self.documents += other.documents
        self.tokens += other.tokens
        self.trained_tokens += other.trained_tokens
        self.lost_tokens += other.lost_tokens
        self.truncated += other.truncated
        self.divided += other.divided
        self.dropped += other.dropped
        self.longest = max(self.longest, other.longest)

    def summary(self) -> str:
        dropped = "; ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        return (
            f"{self.conversations} conversations in {self.rows} rows, {self.tokens} tokens, {self.trained_tokens} of them "
            f"supervised; {self.truncated} truncated, {self.divided} split, {self.lost_tokens} supervised tokens lost; "
            f"longest {self.longest} tokens; dropped: {dropped}"
        )


@dataclass(frozen=True)
class SplitRule:
    """A record is for test by a hash of (seed, number), whatever else is read."""

    seed: int
    train_split: float

    def splits(self, numbers: list[int]) -> list[str]:
        is_test = hash_fraction(self.seed, np.array(numbers, dtype=np.int64)) < 1 - self.train_split
        return ["test" if test else "train" for test in is_test.tolist()]


@dataclass(frozen=True)
class ChatPlan:
    """All that a process has to know to encode conversations."""

    tokenizer_folder: Path
    rule: SplitRule
    max_tokens: int
    loss_on: Literal["assistant", "all"]
    long: Literal["truncate", "split", "drop"]


@dataclass(frozen=True)
class ChatChunk:
    documents: dict[str, EncodedDocuments]  # by split
    reports: dict[str, SplitReport]


class ChunkEncoder:
    def __init__(self, plan: ChatPlan) -> None:
        self._plan = plan
        tokenizer = load_chat_tokenizer(plan.tokenizer_folder)
        self._encoder = ChatEncoder(tokenizer, plan.max_tokens, loss_on=plan.loss_on, long=plan.long)

    def encode(self, conversations: list[Conversation]) -> ChatChunk:
        kept: dict[str, list[EncodedConversation]] = {}
        reports: dict[str, SplitReport] = {}
        splits = self._plan.rule.splits([conversation.number for conversation in conversations])
        for conversation, split in zip(conversations, splits, strict=True):
            report = reports.setdefault(split, SplitReport())
            pieces = self._encode(conversation, report)
            if pieces:
                kept.setdefault(split, []).extend(pieces)
                report.conversations += 1
                report.documents += len(pieces)
                report.divided += len(pieces) > 1
                report.truncated += any(piece.is_truncated for piece in pieces)
                report.tokens += sum(len(piece.ids) for piece in pieces)
                report.trained_tokens += sum(int(piece.is_trained.sum()) for piece in pieces)
                report.longest = max(report.longest, *(len(piece.ids) for piece in pieces))
        return ChatChunk({split: join_documents(pieces) for split, pieces in kept.items()}, reports)

    def _encode(self, conversation: Conversation, report: SplitReport) -> list[EncodedConversation]:
        turns = conversation.turns
        if not turns or (self._plan.loss_on == "assistant" and not has_answer(turns)):
            report.dropped["without an answer"] += 1
            return []
        encoded, lost = self._encoder.encode_counted(turns)
        report.lost_tokens += lost
        pieces = [piece for whole in encoded if (piece := _learnable(whole)) is not None]
        if not pieces:
            report.dropped["too long" if self._plan.long == "drop" else "without room for their answer"] += 1
        return pieces


def encode_conversations(
    plan: ChatPlan, conversations: Iterable[Conversation], num_workers: int
) -> Iterator[ChatChunk]:
    """Encode chunk after chunk, in order; the result is the same with any number of processes."""
    with EncoderPool(partial(ChunkEncoder, plan), num_workers, ALONE_CHUNKS) as pool:
        yield from pool.encode(chunked(conversations, _size, CHUNK_CHARACTERS))


def _size(conversation: Conversation) -> int:
    return CONVERSATION_CHARACTERS + sum(len(turn.text) for turn in conversation.turns)


def _learnable(encoded: EncodedConversation) -> EncodedConversation | None:
    """Up to the last token that has a place in a row and is trained there; None if there is none."""
    trained = np.flatnonzero(encoded.is_trained[1:])
    if not len(trained):
        return None
    used = int(trained[-1]) + 2
    is_trained = encoded.is_trained[:used].copy()
    is_trained[0] = False  # the first token is an input only
    return EncodedConversation(encoded.ids[:used], is_trained, encoded.is_truncated)
