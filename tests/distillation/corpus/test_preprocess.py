"""What a packed corpus holds is what the files of JSON lines held."""

import gzip
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import src.distillation.corpus.preprocess
from dataset.text.conversation import is_in_share
from src.distillation.corpus.documents import CorpusDocuments
from src.distillation.corpus.options import PreprocessOptions
from src.distillation.corpus.shards import cut_into_pieces, pack
from tests.distillation.corpus_samples import (
    preprocess_folder,
    stored_documents,
    stored_rows,
    text_ids,
    texts,
    write_jsonl,
)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=30), st.integers(2, 24))
def test_no_token_is_lost_or_doubled_whatever_the_lengths(lengths: list[int], max_length: int) -> None:
    total = sum(lengths)
    documents = CorpusDocuments(
        ids=np.arange(1, total + 1, dtype=np.int32),  # every token another id
        lengths=np.array(lengths, dtype=np.int64),
        lines=np.arange(len(lengths), dtype=np.int64),
        is_val=np.zeros(len(lengths), dtype=np.bool_),
    )
    pieces = cut_into_pieces(documents, ~documents.is_val, max_length)
    table = pack([pieces], max_length, pad_id=0)
    assert sorted(table.input_ids[table.attention_mask == 1].tolist()) == list(range(1, total + 1))
    assert (table.input_ids[table.attention_mask == 0] == 0).all()

    ends = {int(end) for end in np.cumsum(lengths)}
    for row in range(len(table.input_ids)):
        first, stop = table.row_starts[row : row + 2]
        borders = np.cumsum(table.document_lengths[first:stop])
        for place, token in enumerate(table.input_ids[row, : borders[-1]].tolist()):
            if place + 1 in borders:
                assert table.labels[row, place] == -100
            else:
                assert table.labels[row, place] == token + 1
                assert token not in ends  # two documents never run into each other
        assert (table.labels[row, borders[-1] :] == -100).all()
    if max_length > 2:
        cut = {line for line, piece in zip(table.document_lines, table.document_pieces, strict=True) if piece}
        alone = table.document_lengths == 1
        assert not set(table.document_lines[alone].tolist()) & cut  # no cut leaves a token that teaches nothing


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(max_size=90).filter(lambda text: text.strip()), min_size=1, max_size=12),
    st.integers(2, 40),
    st.sampled_from(["1K", "64"]),
    st.sampled_from(["0", "0.3"]),
)
def test_every_text_comes_back_from_the_shards(
    contents: list[str], length: int, shard_size: str, val_fraction: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_jsonl(root / "raw" / "a.jsonl", [{"text": text} for text in contents])
        manifest = preprocess_folder(
            root, "--max-seq-length", str(length), "--shard-size", shard_size, "--val-fraction", val_fraction
        )
        expected = {("a.jsonl", line): text_ids(text) for line, text in enumerate(contents, 1)}
        assert stored_documents(root / "packed") == expected
        assert sum(facts.tokens for facts in manifest.splits.values()) == sum(map(len, expected.values()))


@pytest.mark.parametrize("length", [128, 1024, 8192])
def test_any_row_length(tmp_path: Path, length: int) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", [*texts(40), {"text": "long " * 5000}])
    manifest = preprocess_folder(tmp_path, "--max-seq-length", str(length))
    rows = stored_rows(tmp_path / "packed")
    assert {len(row.input_ids) for row in rows} == {length}
    assert manifest.max_seq_length == length
    assert len(stored_documents(tmp_path / "packed")) == 41


def test_columns_are_those_of_the_documents_and_describe_themselves(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", [{"text": "ab"}, {"text": "c"}])
    manifest = preprocess_folder(tmp_path, "--max-seq-length", "8", "--val-fraction", "0")
    (row,) = stored_rows(tmp_path / "packed")
    assert row.input_ids == [256, 97, 98, 257, 256, 99, 257, 257]
    assert row.labels == [97, 98, 257, -100, 99, 257, -100, -100]
    assert row.attention_mask == [1] * 7 + [0]
    assert (row.document_lengths, row.document_lines, row.document_pieces) == ([4, 3], [1, 2], [0, 0])
    (shard,) = manifest.shards
    file = tmp_path / "packed" / shard.file
    assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert shard.bytes == file.stat().st_size
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "SNAPPY"


def test_conversations_and_pairs_follow_the_template(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    records = [chat, {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]
    records += [{"prompt": "Hi", "response": "Yo"}, {"prompt": "Hi", "response": ""}, {"text": " \n"}]
    write_jsonl(tmp_path / "raw" / "a.jsonl", records)
    manifest = preprocess_folder(tmp_path)
    expected = [256, *b"[USER]\nHi\n[ASSISTANT]\nYo", 257]
    assert stored_documents(tmp_path / "packed") == {("a.jsonl", line): expected for line in (1, 2, 3)}
    assert manifest.sources[0].skipped == {"without an answer": 1, "empty": 1}


def test_text_that_looks_like_a_special_token_makes_none(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", [{"text": "a</s><|eot|>b"}])
    preprocess_folder(tmp_path)
    assert stored_documents(tmp_path / "packed") == {("a.jsonl", 1): text_ids("a</s><|eot|>b")}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_packed_files_are_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    plain = write_jsonl(tmp_path / "raw" / "a.jsonl", texts(50)).read_bytes()
    (tmp_path / "raw" / "a.jsonl").unlink()
    packed = {"": plain, ".gz": gzip.compress(plain), ".zst": zstandard.compress(plain)}[suffix]
    (tmp_path / "raw" / f"a.jsonl{suffix}").write_bytes(packed)
    preprocess_folder(tmp_path)
    found = stored_documents(tmp_path / "packed")
    assert found == {(f"a.jsonl{suffix}", line): text_ids(r["text"]) for line, r in enumerate(texts(50), 1)}


def test_equal_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("train.jsonl", "math/train.jsonl", "code/train.jsonl")):
        write_jsonl(tmp_path / "raw" / name, texts(9, start=100 * number))
    manifest = preprocess_folder(tmp_path)
    assert [source.path for source in manifest.sources] == ["code/train.jsonl", "math/train.jsonl", "train.jsonl"]
    assert len(stored_documents(tmp_path / "packed")) == 27
    assert len({shard.file for shard in manifest.shards}) == len(manifest.shards)


def test_row_ids_count_through_the_whole_corpus(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / "raw" / name, texts(60, start=ord(name[0])))
    manifest = preprocess_folder(tmp_path, "--shard-size", "1K", "--val-fraction", "0.2")
    ids = sorted(row.row_id for row in stored_rows(tmp_path / "packed"))
    assert ids == list(range(manifest.next_row_id))
    for shard in manifest.shards:
        table = pq.read_table(tmp_path / "packed" / shard.file, columns=["row_id"])
        assert table["row_id"].to_pylist() == list(range(shard.first_row_id, shard.first_row_id + shard.rows))


def test_documents_are_held_out_by_their_text_alone(tmp_path: Path) -> None:
    same = texts(200)
    write_jsonl(tmp_path / "raw" / "a.jsonl", same)
    write_jsonl(tmp_path / "raw" / "b" / "c.jsonl", same[::-1])
    preprocess_folder(tmp_path, "--val-fraction", "0.2")
    split_of: dict[str, set[str]] = {}
    for row in stored_rows(tmp_path / "packed"):
        for line in row.document_lines:
            text = (same if row.source == "a.jsonl" else same[::-1])[line - 1]["text"]
            split_of.setdefault(text, set()).add(row.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    held_out = [text for text, splits in split_of.items() if splits == {"val"}]
    assert 20 <= len(held_out) <= 60
    assert sorted(held_out) == sorted(record["text"] for record in same if is_in_share(record["text"], 0.2))


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(src.distillation.corpus.preprocess, "POOL_PAYS_BYTES", 0)
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(300))
    one = preprocess_folder(tmp_path, "--num-workers", "1", "--shard-size", "8K")
    two = preprocess_folder(tmp_path, "--num-workers", "2", "--shard-size", "8K", "--force")
    assert one.fingerprint == two.fingerprint
    assert one == two


def test_packing_leaves_little_room(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(2000))
    facts = preprocess_folder(tmp_path, "--max-seq-length", "256").splits["train"]
    assert facts.tokens / (facts.rows * 256) > 0.99


def test_licence_and_origin_come_from_the_note_of_the_download(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(5))
    note = {"repository": "ann/chats", "license": "cc-by-4.0", "rows": 5, "is_whole": True}
    (tmp_path / "raw" / "a.jsonl.source.json").write_text(json.dumps(note))
    source = preprocess_folder(tmp_path).sources[0]
    assert (source.repository, source.license) == ("ann/chats", "cc-by-4.0")


def test_summary_goes_to_stdout_and_progress_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", [*texts(50), {"text": ""}])
    manifest = preprocess_folder(tmp_path)
    out, err = capsys.readouterr()
    assert f"{manifest.splits['train'].tokens} tokens of" in out
    assert "skipped records: 1 empty" in out
    assert "tokenizing" in err


def test_defaults_are_those_of_the_documentation() -> None:
    required = {"input": "a", "output": "b"}
    options = PreprocessOptions.model_validate(required)
    assert (options.tokenizer, options.max_seq_length) == ("meta-llama/Llama-3.2-1B", 8192)
    assert options.shard_bytes == 64 << 20
    for text, size in (("2", 2 << 20), ("0.5G", 512 << 20), ("7KiB", 7 << 10)):
        assert PreprocessOptions.model_validate(required | {"shard_size": text}).shard_bytes == size
