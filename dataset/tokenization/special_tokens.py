"""The tokenizer of chat data: any byte-exact tokenizer, and nine special tokens that no text can make."""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.files.disk import write_file
from dataset.tokenization.byte_exact import byte_exact_tokenizer, read_vocab_and_merges
from dataset.tokenization.lookup import (
    MERGES_FILE,
    MODEL_FILES,
    VOCAB_FILE,
    named_tokenizer_file,
    tokenizer_file,
)
from dataset.tokenization.protocol import SPACE, Tokenizer, check_ids
from dataset.tokenization.sentencepiece import SentencePieceTokenizer
from dataset.tokenization.tokenizer_json import BYTE_COUNT, JSON_FILE, JsonTokenizer, train_bpe

SPECIAL_TOKENS = (
    "<|user|>",
    "<|enduser|>",
    "<|assistant|>",
    "<|endassistant|>",
    "<|system|>",
    "<|endsystem|>",
    "<|sep|>",
    "<|endoftext|>",
    "<|pad|>",
)
NAMES = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
MODEL_FILE = "tokenizer.model"
KINDS = (MODEL_FILES, JSON_FILE, VOCAB_FILE)
MAX_TRAINED_SIZE = 1_000_000  # the trainer reserves memory for all of them
# What a tokenizer that changes texts does not give back: spaces of all kinds, accents, ligatures, case, look-alikes.
PROBES = (
    " A",
    "a ",
    "  ",
    "\n",
    "X\x00",
    "<0x41> 12 it's",
    "\ufb01\u00a0 a\t\r\n  b \uff21e\u0301\u00e9 \U0001f44d\U0001f3fd",
)
CHOICES = (
    "Choices that need no network: train:SIZE (for example train:8000), a folder or file with tokenizer.json, a folder "
    "with vocab.json and merges.txt, or a SentencePiece model (*.model)."
)


class ChatTokenizer:
    """A tokenizer whose special tokens are the nine of the chat template; see dataset.tokenization.protocol."""

    def __init__(
        self, pieces: Tokenizer, special_ids: Mapping[str, int], file: Path | None = None, before: str = ""
    ) -> None:
        """`before` is put in front of every text; `file` is None as long as the tokenizer is not saved."""
        self.base = pieces
        self._special = frozenset(special_ids.values())
        self._file = file
        self.before = before
        self.special_ids = special_ids
        self.vocab_size: int = max(pieces.vocab_size, *(index + 1 for index in self._special))
        self.bos_id: int | None = None
        self.eos_id: int = special_ids["<|endoftext|>"]
        self.pad_id: int = special_ids["<|pad|>"]
        self.has_space_prefix: bool = pieces.has_space_prefix

    def special(self, name: str) -> int:
        return self.special_ids[name]

    def encode(self, text: str) -> list[int]:
        return self.base.encode(self.before + text if text else "")

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return self.base.encode_batch([self.before + text if text else "" for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self.vocab_size, "a tokenizer")
        text = b"".join(self.piece_bytes(int(token_id)) for token_id in ids)
        return text.removeprefix(b" " if self.has_space_prefix else b"").decode(errors="replace")

    def piece_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self.base.piece_bytes(token_id)

    def files(self) -> list[Path]:
        """What has to be copied into a folder for `load_chat_tokenizer(folder)` to give the same tokenizer."""
        if self._file is None:
            folder = Path(tempfile.mkdtemp(prefix="chat-tokenizer-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            self.save(folder)
        assert self._file is not None
        return [self._file]

    def save(self, folder: str | Path) -> None:
        """Put the one file of this tokenizer into a folder, from which `load_chat_tokenizer` opens it."""
        if isinstance(self.base, JsonTokenizer):
            name, other, content = JSON_FILE, MODEL_FILE, self.base.to_json().encode()
        else:
            name, other, content = MODEL_FILE, JSON_FILE, self.files()[0].read_bytes()
        target = Path(folder) / name
        if target.with_name(other).exists():
            raise ValueError(f"{folder} holds another tokenizer, {other}. Remove it or choose another folder.")
        write_file(target, content)
        self._file = target


def open_chat_tokenizer(name: str, *, texts: Callable[[], Iterable[str]] | None = None) -> ChatTokenizer:
    """Train (`train:SIZE`, on `texts()`), load (a file or folder), or fetch from the Hub."""
    if name.startswith("train:"):
        return _train(name, texts)
    return _load(named_tokenizer_file(name, KINDS, CHOICES))


def load_chat_tokenizer(path: str | Path) -> ChatTokenizer:
    """Load the tokenizer in a folder, or a tokenizer file."""
    return _load(tokenizer_file(Path(path), KINDS, CHOICES))


def _load(file: Path) -> ChatTokenizer:
    if file.name in (VOCAB_FILE, MERGES_FILE):
        return _from_json(read_vocab_and_merges(file.parent), str(file.parent))
    if file.suffix == ".json":
        return _from_json(file.read_bytes().decode(errors="replace"), str(file), file)
    pieces = SentencePieceTokenizer(file)
    behind = range(pieces.vocab_size, pieces.vocab_size + len(SPECIAL_TOKENS))
    return ChatTokenizer(pieces, dict(zip(SPECIAL_TOKENS, behind, strict=True)), file)


def _from_json(content: str, source: str, file: Path | None = None) -> ChatTokenizer:
    tokenizer, is_complete = byte_exact_tokenizer(content, SPECIAL_TOKENS, source)
    pieces = JsonTokenizer(tokenizer, NAMES, source)
    is_saved = file is not None and file.name == JSON_FILE and is_complete
    special_ids = {name: pieces.token_id(name) for name in SPECIAL_TOKENS}
    # Some add the space only where there is none; given one more, they keep what a text begins with.
    adds_space_if_missing = pieces.has_space_prefix and pieces.encode("a") == pieces.encode(" a")
    found = ChatTokenizer(pieces, special_ids, file if is_saved else None, " " if adds_space_if_missing else "")
    added = "".join(token.content for token in tokenizer.get_added_tokens_decoder().values())
    for probe in (*PROBES, added.replace(SPACE, " ")):
        text = found.decode(found.encode(probe))
        if text != probe:
            raise ValueError(
                f"{source}: this tokenizer changes texts, {probe!r} comes back as {text!r}. Use one that keeps them, "
                "such as gpt2, or train one: --tokenizer train:8000."
            )
    return found


def _train(name: str, texts: Callable[[], Iterable[str]] | None) -> ChatTokenizer:
    size = name.removeprefix("train:")
    smallest = BYTE_COUNT + len(SPECIAL_TOKENS)
    if not size.isdecimal() or not smallest <= int(size) <= MAX_TRAINED_SIZE:
        raise ValueError(
            f"Found {name}, expected train:SIZE with a size from {smallest} (every byte and {len(SPECIAL_TOKENS)} "
            f"special tokens) to {MAX_TRAINED_SIZE}, for example train:8000."
        )
    if texts is None:
        raise ValueError(f"{name} trains a tokenizer on texts, but there are none. Name one that exists. {CHOICES}")
    tokenizer = _from_json(train_bpe(int(size) - len(SPECIAL_TOKENS), texts()), name)
    if tokenizer.vocab_size < int(size):
        print(f"note: {name} gave {tokenizer.vocab_size} tokens; the texts repeat too little for more", file=sys.stderr)
    return tokenizer
