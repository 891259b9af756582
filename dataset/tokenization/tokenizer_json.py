"""The tokenizer of a Hugging Face model: a tokenizer.json, and what its configuration says of special tokens."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.tokenization.sentencepiece import SPACE

JSON_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
# How tokenizers without a configuration usually call the marks around a text.
BOS_NAMES = ("<|begin_of_text|>", "<s>", "[BOS]", "<bos>")
EOS_NAMES = ("<|end_of_text|>", "</s>", "<|endoftext|>", "[EOS]", "<eos>")
WAYS = "Give a folder with tokenizer.json, such a file, a SentencePiece model (*.model), or a name of the Hub."


class JsonTokenizer:
    """A tokenizer.json; see dataset.tokenization.Tokenizer. No text makes a special token."""

    def __init__(self, file: Path, config_file: Path | None) -> None:
        self._files = [file, *([config_file] if config_file else [])]
        self._tokenizer = _parse(file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # text that looks like one is split like any other
        self._vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values()) + 1
        names = _read_names(config_file)
        self.bos_id: int | None = self._special_id(names, "bos_token", BOS_NAMES)
        eos_id = self._special_id(names, "eos_token", EOS_NAMES)
        if eos_id is None:
            raise ValueError(
                f"{file} does not say which token ends a text: no eos_token in {CONFIG_FILE} beside it, and none of "
                f"{', '.join(EOS_NAMES)}. Put the {CONFIG_FILE} of the model beside it."
            )
        self.eos_id: int = eos_id
        pad_id = self._special_id(names, "pad_token", ())
        self.pad_id: int = eos_id if pad_id is None else pad_id
        self.has_space_prefix: bool = self.encode("a") == self.encode(" a")
        self._piece_of = {index: piece for piece, index in self._vocab.items()}
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special} | {self.bos_id, self.eos_id}
        self._byte_of = _byte_alphabet() if '"ByteLevel"' in self._tokenizer.to_str() else None

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(token_id) for token_id in ids], skip_special_tokens=True)
        return text

    def piece_bytes(self, token_id: int) -> bytes:
        piece = self._piece_of.get(token_id, "")
        if token_id in self._special:
            return b""
        if self._byte_of is not None:
            return b"".join(self._byte_of.get(letter, letter.encode()) for letter in piece)
        if byte := BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte.group(1), base=16)])
        return piece.replace(SPACE, " ").encode()

    def files(self) -> list[Path]:
        return self._files

    def pieces(self) -> list[str]:
        return [self._piece_of.get(index, "") for index in range(self.vocab_size)]

    def _special_id(self, names: Mapping[str, Any], key: str, usual: Sequence[str]) -> int | None:
        """What the configuration says, be it that there is none; without a configuration the first usual name."""
        if key in names or not usual or names:
            name = names.get(key)
            name = name.get("content") if isinstance(name, Mapping) else name
            return self._vocab.get(name) if isinstance(name, str) else None
        return next((self._vocab[name] for name in usual if name in self._vocab), None)


def open_json_tokenizer(file: Path) -> JsonTokenizer:
    """Open a tokenizer.json with the configuration beside it, if there is one."""
    config = file.with_name(CONFIG_FILE)
    return JsonTokenizer(file, config if config.is_file() else None)


def _parse(file: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f'Opening {file} needs the package tokenizers. Install it: pip install -e ".[distill]"'
        ) from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our processes share the cores already
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{file} is no {JSON_FILE} or is damaged: {error}. {WAYS}") from error


def _read_names(config_file: Path | None) -> dict[str, Any]:
    if config_file is None:
        return {}
    try:
        names = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is no JSON: {error}. Fetch it again.") from error
    if not isinstance(names, dict):
        raise ValueError(f"{config_file} holds {type(names).__name__}, expected a JSON object. Fetch it again.")
    return names


def _byte_alphabet() -> dict[str, bytes]:
    """The letter that a byte-level tokenizer writes for each byte: printable ones for themselves, then from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + index): bytes([byte]) for index, byte in enumerate(others)
    }
