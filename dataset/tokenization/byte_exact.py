"""Prepares a tokenizer.json so that no text is lost, changed or made into a special token, or refuses it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.files.json_file import read_json
from dataset.tokenization.tokenizer_json import BYTE_COUNT, BYTE_OF, import_tokenizers, parse_tokenizer

UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
REMEDY = "Use another tokenizer, such as gpt2, or train one: --tokenizer train:8000."


def byte_exact_tokenizer(content: str, special_tokens: Sequence[str], source: str) -> tuple[Any, bool]:
    """The package's tokenizer of the content of a tokenizer.json, and whether the file holds all `special_tokens`.

    Its pieces must be bytes: GPT-2's byte alphabet, or LLaMA's words with bytes for the rest. Every added token is a
    special token then. What would change a text, or its ids from call to call, is switched off: Unicode
    normalisation, the space before a text of a byte alphabet, dropout, truncation and padding.
    """
    data = json.loads(parse_tokenizer(content, source).to_str())  # the newest form, whatever the file's age
    _check_bytes(data, source)
    _switch_off(data)
    names = {token["content"] for token in data["added_tokens"]}
    _refuse_reachable(data["model"], names | set(special_tokens), source)
    tokenizer = parse_tokenizer(json.dumps(data), source)
    added_token = import_tokenizers().AddedToken
    tokenizer.add_special_tokens([added_token(name, normalized=False) for name in special_tokens])
    if sorted(tokenizer.get_vocab().values()) != list(range(tokenizer.get_vocab_size())):
        raise ValueError(f"{source}: the ids of its tokens have gaps, so no id is free behind them. {REMEDY}")
    return tokenizer, names >= set(special_tokens)


def read_vocab_and_merges(folder: Path) -> str:
    """The tokenizer.json of GPT-2's older pair of files; a word that no merge leads to is a special token."""
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    vocab = read_json(vocab_file, dict, "Fetch it again.")
    try:
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{merges_file} is missing or damaged: {error}. Fetch it again.") from error
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


def _check_bytes(data: dict[str, Any], source: str) -> None:
    """Refuse a tokenizer that cannot write every byte."""
    model, kind = data["model"], data["model"]["type"]
    is_byte_level = _is_byte_level(data)
    if kind != "BPE" or not (is_byte_level or model["byte_fallback"]):
        found = f"the kind {kind}" if kind != "BPE" else "BPE without bytes"
        raise ValueError(f"{source}: found {found}, expected a BPE of bytes, or one with byte fallback. {REMEDY}")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise ValueError(f"{source}: its pieces carry marks of where a word begins or ends. {REMEDY}")
    needed = set(BYTE_OF) if is_byte_level else {f"<0x{byte:02X}>" for byte in range(BYTE_COUNT)}
    if missing := needed - model["vocab"].keys():
        raise ValueError(f"{source}: {len(missing)} of {BYTE_COUNT} bytes have no token, so text is lost. {REMEDY}")


def _switch_off(data: dict[str, Any]) -> None:
    if _is_byte_level(data):
        if all(step["type"] in UNICODE_FORMS for step in _steps(data["normalizer"])):
            data["normalizer"] = None
        for step in [*_steps(data["normalizer"]), *_steps(data["pre_tokenizer"])]:
            if step["type"] == "ByteLevel" and "add_prefix_space" in step:
                step["add_prefix_space"] = False
    model = data["model"]
    model["dropout"] = data["truncation"] = data["padding"] = data["post_processor"] = None
    for token in data["added_tokens"]:
        token["special"] = token["special"] or token["content"] not in model["vocab"]
    data["added_tokens"] = [token for token in data["added_tokens"] if token["special"]]  # the others are pieces


def _is_byte_level(data: dict[str, Any]) -> bool:
    steps = [*_steps(data["normalizer"]), *_steps(data["pre_tokenizer"])]
    return any(step["type"] == "ByteLevel" for step in steps)


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
        raise ValueError(f"{source}: its pieces make the special tokens {', '.join(found[:5])} from text. {REMEDY}")
