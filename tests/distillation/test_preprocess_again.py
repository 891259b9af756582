"""Preprocessing again: what is kept, what is made anew, and what an interrupted run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import src.distillation.corpus.shards
from dataset.files.disk import exclusive_lock
from src.distillation.corpus.manifest import load_manifest
from tests.distillation.corpus_samples import (
    contents,
    preprocess_fails,
    preprocess_folder,
    stored_documents,
    text_ids,
    texts,
    write_jsonl,
    write_tokenizer,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b/c.jsonl"):
        write_jsonl(tmp_path / "raw" / name, texts(30, start=len(name)))
    preprocess_folder(tmp_path)
    return tmp_path


# --- running again


def test_a_second_run_must_say_what_it_wants(corpus: Path) -> None:
    before = contents(corpus / "packed")
    message = preprocess_fails(corpus)
    assert "--skip-existing" in message and "--force" in message
    assert contents(corpus / "packed") == before


def test_skip_existing_does_nothing_where_nothing_is_new(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(corpus / "packed")
    preprocess_folder(corpus, "--skip-existing")
    assert contents(corpus / "packed") == before
    assert "2 files, 0 of them new" in capsys.readouterr().out


def test_skip_existing_adds_new_files_and_keeps_the_numbers_of_old_rows(corpus: Path) -> None:
    old = load_manifest(corpus / "packed")
    write_jsonl(corpus / "raw" / "0.jsonl", texts(10, start=500))
    new = preprocess_folder(corpus, "--skip-existing")
    assert [source.path for source in new.sources] == ["a.jsonl", "b/c.jsonl", "0.jsonl"]
    assert all(shard in new.shards for shard in old.shards)
    added = [shard for shard in new.shards if shard.source == "0.jsonl"]
    assert min(shard.first_row_id for shard in added) == old.next_row_id
    assert new.fingerprint != old.fingerprint


def test_a_file_without_documents_counts_no_row_number_back(corpus: Path) -> None:
    old = load_manifest(corpus / "packed")
    write_jsonl(corpus / "raw" / "d.jsonl", [{"text": ""}])
    assert preprocess_folder(corpus, "--skip-existing").next_row_id == old.next_row_id


def test_skip_existing_makes_a_changed_file_anew(corpus: Path) -> None:
    old = load_manifest(corpus / "packed")
    write_jsonl(corpus / "raw" / "a.jsonl", texts(5, start=900))
    new = preprocess_folder(corpus, "--skip-existing")
    found = {line: ids for (source, line), ids in stored_documents(corpus / "packed").items() if source == "a.jsonl"}
    assert found == {line: text_ids(record["text"]) for line, record in enumerate(texts(5, start=900), 1)}
    assert [shard for shard in new.shards if shard.source == "b/c.jsonl"] == [
        shard for shard in old.shards if shard.source == "b/c.jsonl"
    ]
    assert all(shard.first_row_id >= old.next_row_id for shard in new.shards if shard.source == "a.jsonl")
    on_disk = {str(file.relative_to(corpus / "packed")) for file in (corpus / "packed").rglob("*.parquet")}
    assert on_disk == {shard.file for shard in new.shards}


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_skip_existing_mends_a_shard(corpus: Path, harm: str) -> None:
    old = load_manifest(corpus / "packed")
    file = corpus / "packed" / old.shards[0].file
    if harm == "removed":
        file.unlink()
    else:
        os.truncate(file, 100)
    preprocess_folder(corpus, "--skip-existing")
    assert len(stored_documents(corpus / "packed")) == 60


def test_force_makes_everything_anew(corpus: Path) -> None:
    old = load_manifest(corpus / "packed")
    (corpus / "raw" / "b" / "c.jsonl").unlink()
    new = preprocess_folder(corpus, "--force", "--max-seq-length", "32")
    assert [source.path for source in new.sources] == ["a.jsonl"]
    assert new.max_seq_length == 32
    on_disk = {str(file.relative_to(corpus / "packed")) for file in (corpus / "packed").rglob("*.parquet")}
    assert on_disk == {shard.file for shard in new.shards}
    assert not on_disk & {shard.file for shard in old.shards}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-seq-length", "128"], ["rows of 64 tokens", "expected 128"]),
        (["--tokenizer", "other"], ["ids of the tokenizer tokenizer", "expected other"]),
        (["--val-fraction", "0.5"], ["--val-fraction 0.01, not 0.5"]),
    ],
)
def test_another_length_or_tokenizer_or_split_is_refused(corpus: Path, flags: list[str], words: list[str]) -> None:
    write_tokenizer(corpus / "other", eos_token="<|eot|>")
    before = contents(corpus / "packed")
    message = preprocess_fails(
        corpus, "--skip-existing", *[str(corpus / "other") if flag == "other" else flag for flag in flags]
    )
    assert all(word in message for word in words), message
    assert contents(corpus / "packed") == before


def test_a_copy_of_the_tokenizer_is_the_same_tokenizer(corpus: Path) -> None:
    copy = write_tokenizer(corpus / "elsewhere")
    text = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(text, indent=4))
    preprocess_folder(corpus, "--skip-existing", "--tokenizer", str(copy))


# --- stopped half-way


def test_an_interrupted_run_keeps_what_is_finished_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write_jsonl(tmp_path / "raw" / name, texts(200, start=ord(name[0])))
    written, write = [], src.distillation.corpus.shards._write_table

    def write_some(path: Path, *rest: Any) -> None:
        written.append(path)
        write(path, *rest)
        if "b" in path.parent.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(src.distillation.corpus.shards, "_write_table", write_some)
    with pytest.raises(SystemExit) as left:
        preprocess_folder(tmp_path, "--shard-size", "2K")
    assert left.value.code == 130
    assert "--skip-existing" in capsys.readouterr().err
    partial = load_manifest(tmp_path / "packed")
    assert [source.path for source in partial.sources] == ["a.jsonl"]
    assert {path.split("/")[0] for path in contents(tmp_path / "packed")} == {"a", "manifest.json"}

    monkeypatch.setattr(src.distillation.corpus.shards, "_write_table", write)
    preprocess_folder(tmp_path, "--shard-size", "2K", "--skip-existing")
    went_on = contents(tmp_path / "packed")
    preprocess_folder(tmp_path, "--shard-size", "2K", "--force")
    assert contents(tmp_path / "packed") == went_on


def test_an_interrupted_force_leaves_the_old_corpus(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(corpus / "packed")
    monkeypatch.setattr(src.distillation.corpus.shards.os, "replace", _interrupt)
    with pytest.raises(SystemExit, match="130"):
        preprocess_folder(corpus, "--force", "--max-seq-length", "32")
    assert contents(corpus / "packed") == before


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_what_a_killed_run_left_is_removed(corpus: Path) -> None:
    before = contents(corpus / "packed")
    (corpus / "packed" / "a" / "train-00007.parquet.tmp").write_bytes(b"half")
    (corpus / "packed" / "a" / "val-00000-0123abcd.parquet").write_bytes(b"not in the manifest yet")
    (corpus / "packed" / "manifest.json.999.tmp").write_bytes(b"half")
    (corpus / "packed" / "mine.parquet").write_bytes(b"somebody's")
    preprocess_folder(corpus, "--skip-existing")
    assert contents(corpus / "packed") == before | {"mine.parquet": b"somebody's"}


def test_ctrl_c_leaves_with_130_and_no_half_shard(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(60_000))
    command = [sys.executable, ROOT / "data/preprocess_to_parquet.py", "--num-workers", "2", "--shard-size", "64K"]
    paths = ["--input", tmp_path / "raw", "--output", tmp_path / "packed", "--tokenizer", tmp_path / "tokenizer"]
    process = subprocess.Popen([*command, *paths, "--max-seq-length", "64"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "packed").rglob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert contents(tmp_path / "packed") == {}


def test_two_runs_do_not_write_into_one_folder(corpus: Path) -> None:
    with exclusive_lock(corpus / "packed"):
        assert "Another run is writing" in preprocess_fails(corpus, "--skip-existing")
