"""Small tokenizers in the forms that people publish, as the content of tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from dataset.tokenization.tokenizer_json import train_bpe
from tests.dataset.instruct_samples import WORDING

PIECES = ("\u2581\u2581", "\u2581the", "\u2581answer", "\u2581is", "the", "answer", "is")  # in the order of merging


def added_token(token: str, token_id: int, **more: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags, **more}


def make_byte_level(added: tuple[str, ...] = (), size: int = 300) -> dict[str, Any]:
    """Like GPT-2's, with added special tokens behind its vocabulary."""
    content: dict[str, Any] = json.loads(train_bpe(size, WORDING))
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first = len(content["model"]["vocab"])
    content["added_tokens"] = [added_token(token, first + index) for index, token in enumerate(added)]
    return content


def llama_style(is_metaspace: bool = False) -> dict[str, Any]:
    """Like LLaMA's: bytes where there is no piece, and a space put before a text."""
    vocab: dict[str, int] = {}
    merges: list[list[str]] = []
    for token in ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdehinrstwxT"]:
        vocab[token] = len(vocab)
    for piece in PIECES:  # built letter by letter
        for stop in range(2, len(piece) + 1):
            if piece[:stop] not in vocab:
                vocab[piece[:stop]] = len(vocab)
                merges.append([piece[: stop - 1], piece[stop - 1]])
    prepend = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token, index) for index, token in enumerate(("<unk>", "<s>", "</s>"))]
        + [added_token("<mask>", len(vocab), lstrip=True)],
        "normalizer": None if is_metaspace else {"type": "Sequence", "normalizers": prepend},
        "pre_tokenizer": metaspace if is_metaspace else None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def stub_downloads(monkeypatch: pytest.MonkeyPatch, held: Path | None) -> list[str]:
    """Let every repository of the Hub hold the files of this folder, or let the Hub not answer; returns what is asked."""
    asked = []

    def download(repo: str, file: str, local_files_only: bool) -> str:
        asked.append(file)
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        assert held is not None
        if not (held / file).exists():
            raise EntryNotFoundError(f"no {file} in {repo}")
        return str(held / file)

    problem = "nobody answers" if held is None else None
    monkeypatch.setattr("dataset.tokenization.lookup.hub_problem", lambda: problem)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked
