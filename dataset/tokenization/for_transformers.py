"""Our tokenizers as files of transformers: tokenizer.json and what its configuration says of special tokens.

A conversation reaches such a tokenizer as one text, while ours encodes its parts one by one. So two signs that no text
holds mark where a part begins: START as `encode` of the part would, CONTINUE without the space that it may put first.
"""

import json
from collections.abc import Mapping
from typing import Any

from dataset.tokenization.protocol import SPACE, Tokenizer
from dataset.tokenization.sentencepiece import SentencePieceTokenizer
from dataset.tokenization.special_tokens import ChatTokenizer
from dataset.tokenization.tokenizer_json import JsonTokenizer

START, CONTINUE = "\U0010fff0", "\U0010fff1"  # for private use
BPE, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 1, 2, 3, 4, 6  # numbers of SentencePiece's file format


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The content of a tokenizer.json that gives the same ids; a ValueError if there is none."""
    if isinstance(tokenizer, ChatTokenizer):  # whose parts stand between special tokens
        if isinstance(tokenizer.base, JsonTokenizer):
            return tokenizer.base.to_json()
        data = _of(tokenizer.base)
        data["added_tokens"] += [_added(index, name) for name, index in tokenizer.special_ids.items()]
    else:
        data = _of(tokenizer)
    _split_at_signs(data)
    return json.dumps(data, ensure_ascii=False)


def tokenizer_config(tokenizer: Tokenizer, content: str, window: int) -> dict[str, Any]:
    """The content of tokenizer_config.json beside such a tokenizer.json."""
    data = json.loads(content)
    names = {index: piece for piece, index in data["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in data["added_tokens"]}
    tokens = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
        **{name: names[index] for name, index in tokens.items() if index is not None},
    }


def filled(template: str, values: Mapping[str, object]) -> str:
    """A Jinja template with values in place of these names."""
    for name, value in values.items():
        template = template.replace(name, json.dumps(value, ensure_ascii=False))
    return template


def _of(tokenizer: Tokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, JsonTokenizer):
        data: dict[str, Any] = json.loads(tokenizer.to_json())
        data["post_processor"] = None  # which adds tokens around a text
        return data
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return _from_sentencepiece(tokenizer)


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    (file,) = tokenizer.files()
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at run time
    except ImportError as error:
        raise ValueError("Reading a SentencePiece model takes the package protobuf: pip install protobuf") from error
    model = ModelProto.FromString(tokenizer.content())
    rules, kinds = model.normalizer_spec, {piece.type for piece in model.pieces}
    unlike = {
        f"model_type={model.trainer_spec.model_type}, expected BPE ({BPE})": model.trainer_spec.model_type != BPE,
        f"the normalisation {rules.name!r}, expected 'identity'": bool(rules.precompiled_charsmap),
        "remove_extra_whitespaces, expected that all are kept": rules.remove_extra_whitespaces,
        "spaces behind words, expected before": model.trainer_spec.treat_whitespace_as_suffix,
        "unused pieces, expected none": not kinds <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE},
    }
    if problems := [words for words, is_found in unlike.items() if is_found]:
        raise ValueError(f"{file} cannot be written as tokenizer.json: found {'; '.join(problems)}.")
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    special = [index for index, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)]
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    if rules.add_dummy_prefix:
        spaces.append({"type": "Prepend", "prepend": SPACE})
    whole = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, model.pieces[index].piece) for index in special],
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": _isolated(whole) if whole else None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, {"type": "Fuse"}]
            + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * rules.add_dummy_prefix,
        },
        "model": {
            "type": "BPE",
            "unk_token": model.trainer_spec.unk_piece,
            "fuse_unk": True,
            "byte_fallback": BYTE in kinds,
            "ignore_merges": bool(whole),
            "vocab": vocab,
            "merges": _merges({piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}, vocab),
        },
    }


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the best piece first."""
    found = []
    for piece, score in scores.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        made = [(vocab[a], vocab[b], a, b) for a, b in pairs if a in scores and b in scores]
        found += [(score, [a, b]) for _, _, a, b in sorted(made)]
    found.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in found]


def _isolated(pieces: list[str]) -> dict[str, Any]:
    """Pieces that are tokens of their own wherever they stand, the longest first."""
    letters = "|".join(
        "".join(f"\\x{{{ord(letter):x}}}" for letter in piece) for piece in sorted(pieces, key=len)[::-1]
    )
    return {"type": "Split", "pattern": {"Regex": letters}, "behavior": "Isolated", "invert": False}


def _added(index: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _split_at_signs(data: dict[str, Any]) -> None:
    """Let both signs separate what stands between special tokens."""
    before, steps = _steps(data["normalizer"]), _steps(data["pre_tokenizer"])
    first = next((step["prepend"] for step in before if step["type"] == "Prepend"), "")
    signs = [{"type": "Replace", "pattern": {"String": START}, "content": CONTINUE + first}]
    if first:  # a text that begins with the sign has its space already
        begin = {"type": "Replace", "pattern": {"Regex": f"\\A{first}{START}"}, "content": first}
        signs.insert(0, begin)
    for step in steps:
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":  # a space where there is none
            step["prepend_scheme"] = "first"
            pattern = {"Regex": f"{START}(?=[^ {SPACE}])"}
            signs.insert(0, {"type": "Replace", "pattern": pattern, "content": CONTINUE + SPACE})
    data["normalizer"] = {"type": "Sequence", "normalizers": [*before, *signs]}
    split = {"type": "Split", "pattern": {"String": CONTINUE}, "behavior": "Removed", "invert": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *steps]}


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    found: list[dict[str, Any]] = part.get("normalizers", part.get("pretokenizers", [part]))
    return found
