"""Small tokenizers, files of JSON lines, and what a packed corpus of them holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import src.distillation.corpus.documents
from data.preprocess_to_parquet import main
from src.distillation.corpus.manifest import Manifest, load_manifest

BYTES = 256


def write_tokenizer(folder: Path, **names: Any) -> Path:
    """A tokenizer.json whose pieces are single bytes: the ids of a text are its bytes, before <s> 256 and </s> 257."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(BYTES + i): byte for i, byte in enumerate(others)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": BYTES + i, "content": name, **flags} for i, name in enumerate(("<s>", "</s>", "<|eot|>"))]
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if names:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def write_jsonl(file: Path, records: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def texts(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"{number} " + "word " * (number * 7 % 11)} for number in range(start, start + count)]


def text_ids(text: str) -> list[int]:
    return [BYTES, *text.encode(), BYTES + 1]


def preprocess_folder(root: Path, *flags: str) -> Manifest:
    """Run the program on `root/raw` with the tokenizer in `root/tokenizer`; later flags win."""
    if not (root / "tokenizer").exists():
        write_tokenizer(root / "tokenizer")
    common = ["--input", str(root / "raw"), "--output", str(root / "packed"), "--tokenizer", str(root / "tokenizer")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            src.distillation.corpus.documents, "CHUNK_BYTES", 500
        )  # so that a small corpus has several shards
        main([*common, "--recursive", "--max-seq-length", "64", "--num-workers", "1", *flags])
    return load_manifest(root / "packed")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def preprocess_fails(root: Path, *flags: str) -> str:
    """The message that the program leaves with."""
    with pytest.raises(SystemExit) as left:
        preprocess_folder(root, *flags)
    assert left.value.code not in (0, None)
    return str(left.value.code)


@dataclass(frozen=True)
class StoredRow:
    row_id: int
    source: str
    split: str
    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    document_lengths: list[int]
    document_lines: list[int]
    document_pieces: list[int]


def stored_rows(folder: Path) -> list[StoredRow]:
    """Every row as it stands in the parquet files, read without our reader."""
    rows = []
    for split, facts in load_manifest(folder).splits.items():
        for shard in facts.shards:
            for row in pq.read_table(folder / shard.file).to_pylist():
                rows.append(StoredRow(source=shard.source, split=split, **row))
    return rows


def stored_documents(folder: Path) -> dict[tuple[str, int], list[int]]:
    """The ids of each document, its pieces joined, by source and line; fails if a piece is there twice."""
    pieces: dict[tuple[str, int, int], list[int]] = {}
    for row in stored_rows(folder):
        start = 0
        for length, line, piece in zip(row.document_lengths, row.document_lines, row.document_pieces, strict=True):
            key = (row.source, line, piece)
            assert key not in pieces, f"{key} is there twice"
            pieces[key] = row.input_ids[start : start + length]
            start += length
    joined: dict[tuple[str, int], list[int]] = {}
    for source, line, piece in sorted(pieces):
        joined.setdefault((source, line), []).extend(pieces[source, line, piece])
    return joined
