"""From lines of JSON to documents: parses and tokenizes a corpus, in several processes where that pays."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from dataset.files.json_stream import parse_line
from dataset.files.jsonl import SPLITS
from dataset.text.conversation import Turn, has_answer, parse_record
from dataset.text.encoded import ChunkBuilder, EncodedChunk, SplitReport, described
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.text.template import ConversationEncoder
from dataset.tokenization.lookup import load_tokenizer
from dataset.tokenization.protocol import Tokenizer

CHUNK_LINES = 1024
POOL_PAYS_LINES = 20_000  # starting processes costs seconds where they are spawned, not forked
MAX_PROCESSES = 8  # more would wait for the one that reads

Line = tuple[int, str, bytes]  # line number, split, text


@dataclass
class LoadReport:
    """What became of the records of a corpus."""

    source: str
    splits: dict[str, SplitReport] = field(default_factory=lambda: {split: SplitReport() for split in SPLITS})
    seconds: float = 0.0

    @property
    def kept(self) -> dict[str, int]:
        return {split: report.conversations for split, report in self.splits.items()}

    @property
    def skipped(self) -> Counter[str]:
        """By reason."""
        return sum((report.dropped for report in self.splits.values()), Counter[str]())

    @property
    def records(self) -> int:
        return sum(self.kept.values()) + self.skipped.total()

    @property
    def truncated(self) -> int:
        return sum(report.truncated for report in self.splits.values())

    @property
    def tokens(self) -> int:
        return sum(report.tokens for report in self.splits.values())

    @property
    def trained_tokens(self) -> int:
        return sum(report.trained_tokens for report in self.splits.values())

    def summary(self) -> str:
        return (
            f"{self.source}: {self.records} records read in {self.seconds:.1f} s\n"
            f"  kept: {self.kept['train']} train, {self.kept['test']} test ({self.truncated} of them truncated)\n"
            f"  skipped: {described(self.skipped)}\n"
            f"  tokens: {self.tokens}, of which {self.trained_tokens} are trained"
        )


@dataclass(frozen=True)
class UsedLines:
    """Lines, and how many they are."""

    lines: Iterator[Line]
    count: int


@dataclass(frozen=True)
class EncodingPlan:
    """All that a process has to know to encode lines."""

    tokenizer_path: Path
    source: str  # named in errors
    max_tokens: int
    truncate: Literal["right", "prompt"]
    on_error: Literal["raise", "skip"]

    def open_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path)


class ChunkEncoder:
    def __init__(self, plan: EncodingPlan) -> None:
        self._plan = plan
        self._encoder = ConversationEncoder(plan.open_tokenizer(), plan.max_tokens, plan.truncate)

    def encode(self, lines: list[Line], /) -> EncodedChunk:
        chunk = ChunkBuilder()
        parsed = [(split, turns) for number, split, text in lines if (turns := self._parse(number, split, text, chunk))]
        encoded = self._encoder.encode_batch([turns for _, turns in parsed])
        for (split, _), conversation in zip(parsed, encoded, strict=True):
            if conversation is None:
                chunk.drop(split, "without room for their answer")
            else:
                chunk.keep(split, [conversation])
        return chunk.build()

    def _parse(self, number: int, split: str, text: bytes, chunk: ChunkBuilder) -> list[Turn]:
        """The turns of a line; none if there is nothing to learn from it."""
        if not text.strip():
            return []
        try:
            turns = parse_line(
                self._plan.source, number, text, parse_record, "Set dataset.on_error=skip to leave out such lines."
            )
        except ValueError:
            if self._plan.on_error == "raise":
                raise
            chunk.drop(split, "broken lines")
            return []
        if not has_answer(turns):
            chunk.drop(split, "without an answer")
            return []
        return turns


def encode_lines(plan: EncodingPlan, used: UsedLines) -> Iterator[EncodedChunk]:
    """Encode chunk after chunk, in order; a small corpus in this process."""
    num_processes = min(_num_cores(), MAX_PROCESSES) if used.count >= POOL_PAYS_LINES else 1
    with EncoderPool(partial(ChunkEncoder, plan), num_processes) as pool:
        yield from pool.encode(chunked(used.lines, lambda line: 1, CHUNK_LINES))


def _num_cores() -> int:
    """Those that this process may use, shared with the other ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
