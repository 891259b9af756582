"""Byte-pair tokenizers of the package `tokenizers`: opened so that no text is lost or makes a special token; trained."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.tokenization.sentencepiece import SPACE, is_unicode

BYTE_COUNT = 256
# Letters with their accents, one digit, or a run of other signs, each with the space before it; then white space.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class BpeTokenizer:
    """A tokenizer.json whose pieces are bytes: GPT-2's byte alphabet, or LLaMA's words with bytes for the rest.

    Every added token of the file is a special token here, and no text makes one. What would change a text or its ids
    from call to call is switched off: Unicode normalisation, the space before a text of a byte alphabet, dropout,
    truncation and padding.
    """

    def __init__(self, content: str, special_tokens: Sequence[str], source: str) -> None:
        self._arguments = (content, special_tokens, source)
        data = json.loads(_parse(content, source).to_str())  # the newest form, whatever the file's age
        is_byte_level = _prepare(data, source)
        self.is_complete = {token["content"] for token in data["added_tokens"]} >= set(special_tokens)
        self._tokenizer = _parse(json.dumps(data), source)
        added_token = import_tokenizers().AddedToken
        self._tokenizer.add_special_tokens([added_token(name, normalized=False) for name in special_tokens])
        self._tokenizer.encode_special_tokens = True  # text that looks like one is split like any other

        tokens = sorted((index, token) for token, index in self._tokenizer.get_vocab().items())
        if [index for index, _ in tokens] != list(range(len(tokens))):
            raise ValueError(f"{source}: the ids of its tokens have gaps, so no id is free behind them. {_remedy()}")
        self.vocab_size: int = len(tokens)
        piece_of = byte_level_piece if is_byte_level else fallback_piece
        added = self._tokenizer.get_added_tokens_decoder()
        self._pieces = [b"" if index in added else piece_of(token) for index, token in tokens]
        self.added_tokens: list[str] = [token.content for token in added.values()]
        _refuse_reachable(data["model"], set(self.added_tokens), source)

        self._before = ""
        start, spaced = self.encode("a"), self.encode(" a")
        self.has_space_prefix: bool = b"".join(self._pieces[index] for index in start).startswith(b" ")
        # Some add the space only where there is none; given one more, they keep what a text begins with.
        self._before = " " if self.has_space_prefix and start == spaced else ""

    def __reduce__(self) -> tuple[type["BpeTokenizer"], tuple[str, Sequence[str], str]]:
        return BpeTokenizer, self._arguments  # a copy made by the package would forget to split special tokens

    def token_id(self, token: str) -> int:
        found: int = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        for text in texts:
            check_unicode(text)
        given = [self._before + text if text else "" for text in texts]
        encoded = self._tokenizer.encode_batch_fast(given, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def piece_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def to_json(self) -> str:
        """A tokenizer.json, special tokens included, that gives this tokenizer again."""
        content: str = self._tokenizer.to_str(pretty=True)
        return content


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


def read_vocab_and_merges(folder: Path) -> str:
    """The tokenizer.json of GPT-2's older pair of files; a word that no merge leads to is a special token."""
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    try:
        vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ValueError(
            f"{folder}: vocab.json or merges.txt is cut off or damaged: {error}. Fetch it again."
        ) from error
    if not isinstance(vocab, dict):
        raise ValueError(f"{vocab_file}: expected a JSON object of tokens and ids, found {type(vocab).__name__}.")
    merges = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not (number == 1 and line.startswith("#version")):
            pair = line.rstrip("\r").split(" ")
            if len(pair) != 2:
                raise ValueError(f"{merges_file}, line {number}: expected two pieces, found {line[:60]!r}.")
            merges.append(pair)
    reachable = {first + second for first, second in merges} | set(BYTE_OF)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": token, **flags} for token, index in vocab.items() if token not in reachable]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        }
    )


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be seen in Latin-1, else the next one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(BYTE_COUNT) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


BYTE_OF = byte_alphabet()


def byte_level_piece(token: str) -> bytes:
    return bytes(BYTE_OF[letter] for letter in token) if BYTE_OF.keys() >= set(token) else b""


def fallback_piece(token: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(token)
    return bytes([int(byte[1], base=16)]) if byte else token.replace(SPACE, " ").encode()


def check_unicode(text: str) -> None:
    if not is_unicode(text):
        raise ValueError(f"Not valid Unicode: {text[:60]!r} holds half of a surrogate pair. Repair the text.")


def import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("The package tokenizers is missing. Install it: pip install tokenizers") from error
    return tokenizers


def _parse(content: str, source: str) -> Any:
    tokenizers = import_tokenizers()
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{source} is no tokenizer.json or is cut off ({len(content)} characters): {error}. Fetch it again."
        ) from error


def _prepare(data: dict[str, Any], source: str) -> bool:
    """Refuse what cannot be read byte by byte, switch off what changes texts; whether it has GPT-2's byte alphabet."""
    model, kind = data["model"], data["model"]["type"]
    steps = [*_steps(data["normalizer"]), *_steps(data["pre_tokenizer"])]
    is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if kind != "BPE" or not (is_byte_level or model["byte_fallback"]):
        found = f"the kind {kind}" if kind != "BPE" else "BPE without bytes"
        raise ValueError(f"{source}: found {found}, expected a BPE of bytes, or one with byte fallback. {_remedy()}")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise ValueError(f"{source}: its pieces carry marks of where a word begins or ends. {_remedy()}")
    needed = set(BYTE_OF) if is_byte_level else {f"<0x{byte:02X}>" for byte in range(BYTE_COUNT)}
    if missing := needed - model["vocab"].keys():
        raise ValueError(f"{source}: {len(missing)} of {BYTE_COUNT} bytes have no token, so text is lost. {_remedy()}")

    if is_byte_level:
        if all(step["type"] in UNICODE_FORMS for step in _steps(data["normalizer"])):
            data["normalizer"] = None
        for step in steps:
            if step["type"] == "ByteLevel" and "add_prefix_space" in step:
                step["add_prefix_space"] = False
    model["dropout"] = data["truncation"] = data["padding"] = data["post_processor"] = None
    for token in data["added_tokens"]:
        token["special"] = token["special"] or token["content"] not in model["vocab"]
    data["added_tokens"] = [token for token in data["added_tokens"] if token["special"]]  # the others are pieces
    return is_byte_level


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("normalizers", part.get("pretokenizers"))
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


def _refuse_reachable(model: dict[str, Any], special: set[str], source: str) -> None:
    """A special token that is also a piece which the model builds would be made from text."""
    built = {first + second for first, second in model["merges"]}
    if model["ignore_merges"]:
        built |= model["vocab"].keys()
    if found := sorted(built & special):
        raise ValueError(f"{source}: its pieces make the special tokens {', '.join(found[:5])} from text. {_remedy()}")


def _remedy() -> str:
    return "Use another tokenizer, such as gpt2, or train one: --tokenizer train:8000."
