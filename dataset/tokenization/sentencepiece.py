"""Tokenizers behind one small protocol, and the search for the tokenizer file that a run should use."""

import codecs
import os
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataset.files.download import fetch_hub_file

DEFAULT_TOKENIZER = Path("tokenizers/llama-32k/tokenizer.model")
HUB_TOKENIZER = ("hf-internal-testing/llama-tokenizer", "tokenizer.model")  # the LLaMA 32k pieces, without a gate
SPACE = "\u2581"  # how SentencePiece writes a space inside a piece

MAX_KNOWN_WORDS = 400_000  # bounds the memory of `encode_batch`, to about 80 MB
SPACE_AFTER_WORD = re.compile("(?<=[^ ]) ")
# A tokenizer that gives this text back unchanged does not normalise: no ligatures, tabs or double spaces are lost.
NORMALISER_PROBE = "\ufb01\u00a0 a\t\n  x \uff21"


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer; special tokens are never made from text."""

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
        """What has to be copied into a folder for `load_tokenizer(folder)` to give the same tokenizer."""
        ...


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
        self.has_space_prefix: bool = self._sp.encode("a", out_type=str)[0].startswith(SPACE)
        self._known_words = KnownWords(self.encode) if self._is_encoded_by_words() else None

    def encode(self, text: str) -> list[int]:
        if not is_unicode(text):
            raise ValueError(f"Not valid Unicode: {text[:60]!r} holds half of a surrogate pair. Repair the text.")
        return self._sp.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        if self._known_words is None:
            return [np.array(self.encode(text), dtype=np.int32) for text in texts]
        return [self._known_words.encode_text(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(
                f"Token ids from {min(ids)} to {max(ids)} do not fit {self._path} with {self.vocab_size} pieces. "
                "Use the tokenizer that the model was trained with."
            )
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


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """How many bytes of text each token stands for; for bits per byte."""
    return np.array([len(tokenizer.piece_bytes(index)) for index in range(tokenizer.vocab_size)], dtype=np.int32)


def is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can carry and no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open a tokenizer file, or the one in a folder (such as a checkpoint)."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.model"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"Expected one tokenizer file (*.model) in the folder {path}, found {names}.")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"The tokenizer file {path} does not exist. {_four_ways()}")
    return SentencePieceTokenizer(path)


def find_tokenizer(explicit_path: str | Path | None = None, download: bool = True) -> Path:
    """The tokenizer to use: the given one, LLAMA_TOKENIZER, the default place, or (into that place) the Hub's."""
    from_environment = os.environ.get("LLAMA_TOKENIZER")
    for source, path in (("", explicit_path), ("LLAMA_TOKENIZER names ", from_environment)):
        if path:
            if not Path(path).exists():
                raise ValueError(f"{source}{path}, but there is no such tokenizer. {_four_ways()}")
            return Path(path)
    if DEFAULT_TOKENIZER.exists():
        return DEFAULT_TOKENIZER
    if not download:
        raise ValueError(f"No tokenizer found. {_four_ways()}")
    repo, filename = HUB_TOKENIZER
    try:
        return fetch_hub_file(repo, filename, DEFAULT_TOKENIZER, repo_type="models")
    except ValueError as error:
        raise ValueError(f"No tokenizer found: {error} {_four_ways()}") from error


def _four_ways() -> str:
    return (
        "There are four ways to give one: the path of a SentencePiece model in the configuration "
        "(dataset.tokenizer_path, or --tokenizer-path), the environment variable LLAMA_TOKENIZER, a file at "
        f"{DEFAULT_TOKENIZER}, or a network that reaches the Hugging Face Hub ({HUB_TOKENIZER[0]})."
    )


def _open_sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError("The package sentencepiece is missing. Install it: pip install sentencepiece") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} is no SentencePiece model or is cut off ({path.stat().st_size} bytes): {error}. Fetch it again."
        ) from error
