"""Tokenizers of the package `tokenizers`: tokenizer.json, what its configuration says of special tokens, training."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.files.json_file import read_json
from dataset.tokenization.protocol import SPACE, check_unicode, puts_space_first

JSON_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
# How tokenizers without a configuration usually call the marks around a text.
BOS_NAMES = ("<|begin_of_text|>", "<s>", "[BOS]", "<bos>")
EOS_NAMES = ("<|end_of_text|>", "</s>", "<|endoftext|>", "[EOS]", "<eos>")
BYTE_COUNT = 256
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
# Letters with their accents, one digit, or a run of other signs, each with the space before it; then white space.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


class JsonTokenizer:
    """A tokenizer of the package `tokenizers`; no text makes a special token.

    `names` are those of its configuration, such as eos_token; empty if it has none.
    """

    def __init__(self, tokenizer: Any, names: Mapping[str, Any], source: str, files: Sequence[Path] = ()) -> None:
        self._arguments = (tokenizer, names, source, files)
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # text that looks like one is split like any other
        self._vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values()) + 1
        self.bos_id: int | None = self._special_id(names, "bos_token", BOS_NAMES)
        eos_id = self._special_id(names, "eos_token", EOS_NAMES)
        if eos_id is None:
            raise ValueError(
                f"{source} does not say which token ends a text: no eos_token in {CONFIG_FILE} beside it, and none of "
                f"{', '.join(EOS_NAMES)}. Put the {CONFIG_FILE} of the model beside it."
            )
        self.eos_id: int = eos_id
        pad_id = self._special_id(names, "pad_token", ())
        self.pad_id: int = eos_id if pad_id is None else pad_id
        self._piece_of = {index: piece for piece, index in self._vocab.items()}
        added = tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special} | {self.bos_id, self.eos_id}
        steps = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
        self._is_byte_level = any("ByteLevel(" in str(step) for step in steps)
        self.has_space_prefix: bool = puts_space_first(self)

    def __reduce__(self) -> tuple[type["JsonTokenizer"], tuple[Any, ...]]:
        return JsonTokenizer, self._arguments  # a copy made by the package would forget to split special tokens

    def token_id(self, token: str) -> int:
        return self._vocab[token]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        for text in texts:
            check_unicode(text)
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(token_id) for token_id in ids], skip_special_tokens=True)
        return text

    def piece_bytes(self, token_id: int) -> bytes:
        piece = self._piece_of.get(token_id, "")
        if token_id in self._special:
            return b""
        if self._is_byte_level:  # a piece with any other letter stands for itself, as when the package decodes
            return bytes(map(BYTE_OF.__getitem__, piece)) if BYTE_OF.keys() >= set(piece) else piece.encode()
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], base=16)]) if byte else piece.replace(SPACE, " ").encode()

    def files(self) -> list[Path]:
        return list(self._arguments[3])

    def pieces(self) -> list[str]:
        """What the file writes for each id; empty where an id is not used."""
        return [self._piece_of.get(index, "") for index in range(self.vocab_size)]

    def to_json(self) -> str:
        """A tokenizer.json that gives this tokenizer again."""
        content: str = self._tokenizer.to_str(pretty=True)
        return content

    def _special_id(self, names: Mapping[str, Any], key: str, usual: Sequence[str]) -> int | None:
        """What the configuration says, be it that there is none; without a configuration the first usual name."""
        if key in names or not usual or names:
            name = names.get(key)
            name = name.get("content") if isinstance(name, Mapping) else name
            return self._vocab.get(name) if isinstance(name, str) else None
        return next((self._vocab[name] for name in usual if name in self._vocab), None)


def open_json_tokenizer(file: Path) -> JsonTokenizer:
    """Open a tokenizer.json with the configuration beside it, if there is one."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our processes share the cores already
    tokenizer = parse_tokenizer(file.read_bytes().decode(errors="replace"), str(file))
    config = file.with_name(CONFIG_FILE)
    if not config.is_file():
        return JsonTokenizer(tokenizer, {}, str(file), [file])
    names = read_json(config, dict, "Fetch it again.")
    return JsonTokenizer(tokenizer, names, str(file), [file, config])


def parse_tokenizer(content: str, source: str) -> Any:
    """The package's tokenizer of the content of a tokenizer.json."""
    tokenizers = import_tokenizers()
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{source} is not a {JSON_FILE} or is damaged ({len(content)} characters): {error}. Fetch it again."
        ) from error


def train_bpe(vocab_size: int, texts: Iterable[str]) -> str:
    """The tokenizer.json of a byte-level BPE with at most `vocab_size` pieces; the same for the same texts."""
    import_tokenizers()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def checked() -> Iterable[str]:
        for text in texts:
            check_unicode(text)
            yield text

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(checked(), trainer)
    content: str = tokenizer.to_str()
    return content


def import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("The package tokenizers is missing. Install it: pip install tokenizers") from error
    return tokenizers


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be seen in Latin-1, else the next one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(BYTE_COUNT) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


BYTE_OF = byte_alphabet()
