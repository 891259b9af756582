"""From conversations to documents of one split or the other, in several processes where that pays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dataset.chat.records import Conversation
from dataset.chat.template import ChatEncoder
from dataset.files.jsonl import hash_fraction
from dataset.text.conversation import EncodedConversation, has_answer
from dataset.text.encoded import ChunkBuilder, EncodedChunk
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.tokenization.special_tokens import load_chat_tokenizer

CHUNK_CHARACTERS = 1 << 19  # bounds what waits for the processes
CONVERSATION_CHARACTERS = 1 << 10  # what a conversation counts beside its text
ALONE_CHUNKS = 8  # a smaller corpus is encoded before processes have started


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


class ChunkEncoder:
    def __init__(self, plan: ChatPlan) -> None:
        self._plan = plan
        tokenizer = load_chat_tokenizer(plan.tokenizer_folder)
        self._encoder = ChatEncoder(tokenizer, plan.max_tokens, loss_on=plan.loss_on, long=plan.long)

    def __call__(self, conversations: list[Conversation]) -> EncodedChunk:
        chunk = ChunkBuilder()
        splits = self._plan.rule.splits([conversation.number for conversation in conversations])
        for conversation, split in zip(conversations, splits, strict=True):
            turns = conversation.turns
            if not turns or (self._plan.loss_on == "assistant" and not has_answer(turns)):
                chunk.drop(split, "without an answer")
                continue
            encoded, lost = self._encoder.encode_counted(turns)
            chunk.reports[split].lost_tokens += lost
            pieces = [piece for whole in encoded if (piece := _learnable(whole)) is not None]
            if pieces:
                chunk.keep(split, pieces)
            else:
                chunk.drop(split, "too long" if self._plan.long == "drop" else "without room for their answer")
        return chunk.build()


def encode_conversations(
    plan: ChatPlan, conversations: Iterable[Conversation], num_workers: int
) -> Iterator[EncodedChunk]:
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
