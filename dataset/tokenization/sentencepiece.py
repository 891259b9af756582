"""Tokenizers of SentencePiece model files."""

import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.tokenization.protocol import SPACE, check_ids, check_unicode, puts_space_first

MAX_KNOWN_WORDS = 400_000  # bounds the memory of `encode_batch`, to about 80 MB
SPACE_AFTER_WORD = re.compile("(?<=[^ ]) ")
# A tokenizer that gives this text back unchanged does not normalise: no ligatures, tabs or double spaces are lost.
NORMALISER_PROBE = "\ufb01\u00a0 a\t\n  x \uff21"


class SentencePieceTokenizer:
    """A SentencePiece model file; a missing padding piece is replaced by the end-of-sequence piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sp = _open_sentencepiece(path)
        self.vocab_size: int = self._sp.vocab_size()
        self.bos_id: int | None = self._sp.bos_id() if self._sp.bos_id() >= 0 else None
        self.eos_id: int = self._sp.eos_id()
        if self.eos_id < 0:
            raise ValueError(
                f"The tokenizer {path} has no end-of-sequence piece. Train it with eos_id=2, as LLaMA does."
            )
        self.pad_id: int = self._sp.pad_id() if self._sp.pad_id() >= 0 else self.eos_id
        self.has_space_prefix: bool = puts_space_first(self)
        self._known_words = KnownWords(self.encode) if self._is_encoded_by_words() else None

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return self._sp.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        if self._known_words is None:
            return [np.array(self.encode(text), dtype=np.int32) for text in texts]
        return [self._known_words.encode_text(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self.vocab_size, str(self._path))
        return self._sp.decode([int(token_id) for token_id in ids])

    def piece_bytes(self, token_id: int) -> bytes:
        piece: str = self._sp.id_to_piece(token_id)
        if self._sp.is_control(token_id):
            return b""
        if self._sp.is_byte(token_id):
            return bytes([int(piece[1:-1], base=16)])  # written as <0x0A>
        if self._sp.is_unknown(token_id):
            return self._sp.decode([token_id]).encode()
        return piece.replace(SPACE, " ").encode()

    def files(self) -> list[Path]:
        return [self._path]

    def content(self) -> bytes:
        """The model file."""
        found: bytes = self._sp.serialized_model_proto()
        return found

    def _is_encoded_by_words(self) -> bool:
        """Whether a text is encoded word by word, so that `encode_batch` may remember words.

        True of LLaMA's tokenizer: nothing is normalised, the space stands before its word, no piece spans two words.
        """
        after_a_letter = re.compile(f"[^{SPACE}]{SPACE}")
        return (
            self.has_space_prefix
            and self._sp.decode(self._sp.encode(NORMALISER_PROBE)) == NORMALISER_PROBE
            and not any(after_a_letter.search(self._sp.id_to_piece(index)) for index in range(self.vocab_size))
        )


class KnownWords(dict[str, bytes]):
    """The ids of words, as bytes of int32; a word is encoded when it is met first.

    A word is a piece of text between two spaces, with whatever spaces it begins with beyond the one that a tokenizer
    puts before every text. Nothing but the space that ends a text is left for the empty word.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        trailing_space = encode("a ")[len(encode("a")) :]
        super().__init__({"": array("i", trailing_space).tobytes()})
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._encode(word)).tobytes()
        if len(self) < MAX_KNOWN_WORDS:
            self[word] = ids
        return ids

    def encode_text(self, text: str) -> NDArray[np.int32]:
        text = text.replace(SPACE, " ")  # SentencePiece takes the one for the other
        words = SPACE_AFTER_WORD.split(text) if "  " in text or text.startswith(" ") else text.split(" ")
        return np.frombuffer(b"".join(map(self.__getitem__, words)) if text else b"", dtype=np.int32)


def _open_sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError("The package sentencepiece is missing. Install it: pip install sentencepiece") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} is not a SentencePiece model or is cut off ({path.stat().st_size} bytes): {error}. Fetch it again."
        ) from error
