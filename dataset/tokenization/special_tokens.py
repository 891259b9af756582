"""The tokenizer of chat data: any byte-exact tokenizer, and nine special tokens that no text can make."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dataset.files.download import find_hub_file
from dataset.tokenization.bpe import BYTE_COUNT, BpeTokenizer, read_vocab_and_merges, train_bpe
from dataset.tokenization.sentencepiece import SPACE, SentencePieceTokenizer

SPECIAL_TOKENS = (
    *("<|user|>", "<|enduser|>", "<|assistant|>", "<|endassistant|>", "<|system|>", "<|endsystem|>"),
    *("<|sep|>", "<|endoftext|>", "<|pad|>"),
)
CACHE_FOLDER = Path("tokenizers")
JSON_FILE, MODEL_FILE, VOCAB_FILES = "tokenizer.json", "tokenizer.model", ("vocab.json", "merges.txt")
HUB_FILES = ((JSON_FILE,), VOCAB_FILES, (MODEL_FILE,))  # the first that a repository has
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
MAX_TRAINED_SIZE = 1_000_000  # the trainer reserves memory for all of them
# What a tokenizer that changes texts does not give back: spaces of all kinds, accents, ligatures, case, look-alikes.
PROBES = (
    *(" A", "a ", "  ", "\n", "X\x00", "<0x41> 12 it's"),
    "\ufb01\u00a0 a\t\r\n  b \uff21e\u0301\u00e9 \U0001f44d\U0001f3fd",
)
CHOICES = (
    "Choices that need no network: train:SIZE (for example train:8000), a folder or file with tokenizer.json, a folder "
    "with vocab.json and merges.txt, or a SentencePiece model (*.model)."
)


class Pieces(Protocol):
    """The part of a tokenizer that knows text."""

    vocab_size: int
    has_space_prefix: bool

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]: ...

    def piece_bytes(self, token_id: int) -> bytes: ...


class ChatTokenizer:
    """See dataset.tokenization.Tokenizer."""

    def __init__(self, pieces: Pieces, special_ids: Mapping[str, int], file: Path | None = None) -> None:
        self._pieces = pieces
        self._special = frozenset(special_ids.values())
        self._file = file  # None: not saved yet
        self.special_ids = special_ids
        self.vocab_size: int = max(pieces.vocab_size, *(index + 1 for index in self._special))
        self.bos_id: int | None = None
        self.eos_id: int = special_ids["<|endoftext|>"]
        self.pad_id: int = special_ids["<|pad|>"]
        self.has_space_prefix: bool = pieces.has_space_prefix

    def special(self, name: str) -> int:
        return self.special_ids[name]

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return self._pieces.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(
                f"Token ids from {min(ids)} to {max(ids)} do not fit a tokenizer with {self.vocab_size} tokens. "
                "Use the tokenizer that the model was trained with."
            )
        text = b"".join(self.piece_bytes(int(token_id)) for token_id in ids)
        return text.removeprefix(b" " if self.has_space_prefix else b"").decode(errors="replace")

    def piece_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self._pieces.piece_bytes(token_id)

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
        if isinstance(self._pieces, BpeTokenizer):
            name, other, content = JSON_FILE, MODEL_FILE, self._pieces.to_json().encode()
        else:
            name, other, content = MODEL_FILE, JSON_FILE, self.files()[0].read_bytes()
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.with_name(other).exists():
            raise ValueError(f"{folder} holds another tokenizer, {other}. Remove it or choose another folder.")
        unfinished = target.with_name(f"{name}.{os.getpid()}")
        unfinished.write_bytes(content)
        os.replace(unfinished, target)
        self._file = target


def open_chat_tokenizer(name: str, *, texts: Callable[[], Iterable[str]] | None = None) -> ChatTokenizer:
    """Train (`train:SIZE`, on `texts()`), open (a file or folder), or fetch from the Hub into `tokenizers/`."""
    if name.startswith("train:"):
        return _train(name, texts)
    if name and Path(name).exists():
        return load_chat_tokenizer(name)
    if not HUB_NAME.fullmatch(name) or name.endswith((".json", ".model")):
        raise ValueError(f"The tokenizer {name!r} is no file or folder that exists, and no name of the Hub. {CHOICES}")
    return load_chat_tokenizer(_fetch(name))


def load_chat_tokenizer(folder: str | Path) -> ChatTokenizer:
    """Open the tokenizer in a folder, or a tokenizer file."""
    path = Path(folder)
    file = _file_in(path) if path.is_dir() else path
    if file is None:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"Expected tokenizer.json, vocab.json with merges.txt, or one *.model in the folder {path}, found {found}. "
            f"{CHOICES}"
        )
    if not file.is_file():
        raise ValueError(f"The tokenizer file {file} does not exist. {CHOICES}")
    if file.suffix == ".model":
        pieces = SentencePieceTokenizer(file)
        behind = range(pieces.vocab_size, pieces.vocab_size + len(SPECIAL_TOKENS))
        return ChatTokenizer(pieces, dict(zip(SPECIAL_TOKENS, behind, strict=True)), file)
    if file.name in VOCAB_FILES:
        return _from_json(read_vocab_and_merges(file.parent), str(file.parent))
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no tokenizer.json and no SentencePiece model (*.model): {error}.") from error
    return _from_json(content, str(file), file)


def _file_in(folder: Path) -> Path | None:
    models = [folder / MODEL_FILE] if (folder / MODEL_FILE).is_file() else sorted(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    if (folder / JSON_FILE).is_file():
        return folder / JSON_FILE
    return folder / VOCAB_FILES[0] if all((folder / name).is_file() for name in VOCAB_FILES) else None


def _from_json(content: str, source: str, file: Path | None = None) -> ChatTokenizer:
    pieces = BpeTokenizer(content, SPECIAL_TOKENS, source)
    is_saved = file is not None and file.name == JSON_FILE and pieces.is_complete
    special_ids = {name: pieces.token_id(name) for name in SPECIAL_TOKENS}
    tokenizer = ChatTokenizer(pieces, special_ids, file if is_saved else None)
    for probe in (*PROBES, "".join(pieces.added_tokens).replace(SPACE, " ")):
        text = tokenizer.decode(tokenizer.encode(probe))
        if text != probe:
            raise ValueError(
                f"{source}: this tokenizer changes texts, {probe!r} comes back as {text!r}. Use one that keeps them, "
                "such as gpt2, or train one: --tokenizer train:8000."
            )
    return tokenizer


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


class _FileMissingError(ValueError):
    """A repository is there but lacks a file."""


def _fetch(repo: str) -> Path:
    folder = CACHE_FOLDER / repo.replace("/", "--")
    if folder.is_dir() and _file_in(folder) is not None:
        return folder
    try:
        for names in HUB_FILES:
            with suppress(_FileMissingError):
                for file in names:
                    find_hub_file(repo, partial(_choose, file), folder / file, repo_type="models").fetch()
                return folder
        raise ValueError(f"The repository {repo} holds no {JSON_FILE}, {' with '.join(VOCAB_FILES)} or {MODEL_FILE}.")
    except ValueError as error:
        raise ValueError(
            f"The tokenizer {repo!r} is no file or folder here, and the Hub did not give it: {error} {CHOICES}"
        ) from error


def _choose(file: str, names: list[str]) -> str:
    if file not in names:
        raise _FileMissingError(file)
    return file
