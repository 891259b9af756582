"""What every tokenizer offers, and what is built on it: decoding one token at a time, checks."""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer; special tokens are never made from text."""

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    has_space_prefix: bool  # `encode` puts one space before a text and `decode` takes it away

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The same as `encode` of each text, faster."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; none for special tokens."""
        ...

    def files(self) -> list[Path]:
        """What has to be copied into a folder for the same tokenizer to be loaded from there."""
        ...


class StreamDecoder:
    """Turns tokens into text one at a time; what it returned, joined, is `decode` of all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_space = tokenizer.has_space_prefix

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; empty while a character is incomplete."""
        piece = self._tokenizer.piece_bytes(token_id)
        if piece and self._strip_space:
            piece, self._strip_space = piece.removeprefix(b" "), False
        return self._utf8.decode(piece)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def puts_space_first(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text begin with a space that the text does not have."""
    return b"".join(map(tokenizer.piece_bytes, tokenizer.encode("a"))).startswith(b" ")


def check_ids(ids: Sequence[int], vocab_size: int, source: str) -> None:
    """Refuse ids of another vocabulary."""
    if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(
            f"Token ids from {min(ids)} to {max(ids)} do not fit {source} with {vocab_size} tokens. "
            "Use the tokenizer that the model was trained with."
        )


def is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can carry and no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(text: str) -> None:
    if not is_unicode(text):
        raise ValueError(f"Not valid Unicode: {text[:60]!r} holds half of a surrogate pair. Repair the text.")
