"""From the records of a corpus to encoded conversations, chunk by chunk."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from dataset.files.json_stream import parse_line
from dataset.files.jsonl import SPLITS
from dataset.files.records import Content
from dataset.text.conversation import Turn, parse_record, question_key, what_is_missing
from dataset.text.encoded import ChunkBuilder, EncodedChunk, split_of
from dataset.text.template import ConversationEncoder
from dataset.tokenization.lookup import load_tokenizer

Line = tuple[str, int, str, Content]  # file, line or row number, name of the set that it belongs to, record


class LineEncoder:
    """Encodes a chunk of lines; later stages are not trained on what asks one of the questions `held_out`."""

    def __init__(
        self,
        tokenizer_path: Path,
        max_tokens: int,
        truncate: Literal["right", "prompt"],
        template: Literal["markers", "plain"],
        on_error: Literal["raise", "skip"],
        held_out: Collection[str] = (),
    ) -> None:
        self._on_error, self._held_out = on_error, held_out
        self._encoder = ConversationEncoder(load_tokenizer(tokenizer_path), max_tokens, truncate, template)

    def __call__(self, lines: list[Line]) -> EncodedChunk:
        chunk = ChunkBuilder()
        parsed = []
        for line in lines:
            set_name, turns = line[2], parse_turns(line, self._on_error)
            if turns is None:
                chunk.drop(set_name, "broken lines")
            elif turns and (reason := what_is_missing(turns)):
                chunk.drop(set_name, reason)
            elif turns and set_name not in SPLITS and self._is_held_out(set_name, turns):
                chunk.drop(set_name, "that the first stage holds out")
            elif turns:
                parsed.append((set_name, turns))
        encoded = self._encoder.encode_batch([turns for _, turns in parsed])
        for (split, _), conversation in zip(parsed, encoded, strict=True):
            if conversation is None:
                chunk.drop(split, "without room for their answer")
            else:
                chunk.keep(split, [conversation])
        return chunk.build()

    def _is_held_out(self, set_name: str, turns: list[Turn]) -> bool:
        return split_of(set_name) == "train" and question_key(turns) in self._held_out


def parse_turns(line: Line, on_error: Literal["raise", "skip"]) -> list[Turn] | None:
    """The turns of a record, none of a blank line; None for a broken one that may be skipped."""
    file, number, _, content = line
    remedy = "Set dataset.on_error=skip to leave out such lines."
    try:
        if isinstance(content, bytes):
            return parse_line(file, number, content, parse_record, remedy) if content.strip() else []
        return parse_row(file, number, content, remedy)
    except ValueError:
        if on_error == "raise":
            raise
        return None


def parse_row(file: str, number: int, record: dict[str, Any], remedy: str) -> list[Turn]:
    try:
        return parse_record(record)
    except ValueError as error:
        raise ValueError(f"{file}, row {number}: {error}. {remedy}") from error
