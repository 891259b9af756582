"""The copy of a corpus in memory: the same rows, never those of an earlier corpus, and gone when that was asked for."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

import src.distillation.run.ram_disk
from src.distillation.corpus.manifest import MANIFEST_FILE, load_manifest
from src.distillation.run.ram_disk import corpus_in_memory
from tests.distillation.corpus_samples import contents, preprocess_folder, texts, write_jsonl
from tests.tiny import CPU


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(30))
    preprocess_folder(tmp_path)
    return tmp_path / "packed"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(src.distillation.run.ram_disk, "RESERVE_BYTES", 0)
    (tmp_path / "shm").mkdir()
    yield tmp_path / "shm"


def test_copy_holds_what_the_manifest_names(corpus: Path, memory: Path) -> None:
    (corpus / "left_over.parquet").write_bytes(b"of a run that was killed")
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as copy:
        assert memory in copy.parents
        expected = contents(corpus)
        del expected["left_over.parquet"]
        assert contents(copy) == expected
    assert (copy / MANIFEST_FILE).is_file()  # stays for the next run
    assert (memory / f"distillation_data-{os.getuid()}").stat().st_mode & 0o077 == 0


def test_second_run_reads_the_copy_that_is_there(corpus: Path, memory: Path) -> None:
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as first:
        written = (first / MANIFEST_FILE).stat().st_ino
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as second:
        assert second == first
        assert (second / MANIFEST_FILE).stat().st_ino == written


def test_stale_copy_is_not_read(corpus: Path, memory: Path, tmp_path: Path) -> None:
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as stale:
        pass
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(30, start=100))
    manifest = preprocess_folder(tmp_path, "--force")
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as fresh:
        assert fresh != stale
        assert load_manifest(fresh).fingerprint == manifest.fingerprint


def test_damaged_copy_is_made_anew(corpus: Path, memory: Path) -> None:
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as copy:
        shard = copy / load_manifest(copy).shards[0].file
    shard.write_bytes(b"cut")
    with corpus_in_memory(corpus, CPU, cleanup=False, root=memory) as again:
        assert contents(again) == contents(corpus)


def test_cleanup_removes_the_copy_and_nothing_else(corpus: Path, memory: Path) -> None:
    with corpus_in_memory(corpus, CPU, cleanup=True, root=memory) as copy:
        assert copy.is_dir()
    assert not copy.exists()
    assert (corpus / MANIFEST_FILE).is_file()


def test_cleanup_also_after_a_failure(corpus: Path, memory: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with corpus_in_memory(corpus, CPU, cleanup=True, root=memory) as copy:
            raise ZeroDivisionError
    assert not copy.exists()


def test_too_little_memory_reads_the_disk(
    corpus: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with corpus_in_memory(corpus, CPU, cleanup=True, root=memory) as folder:
        assert folder == corpus
    assert "has 100; reading the disk" in capsys.readouterr().err
    assert (corpus / MANIFEST_FILE).is_file()


def test_system_without_shared_memory_reads_the_disk(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus_in_memory(corpus, CPU, cleanup=True, root=tmp_path / "nowhere") as folder:
        assert folder == corpus
    assert "this system has no" in capsys.readouterr().err


def test_folder_open_to_others_is_not_trusted(corpus: Path, memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = memory / f"distillation_data-{os.getuid()}"
    home.mkdir()
    home.chmod(0o777)
    with corpus_in_memory(corpus, CPU, cleanup=True, root=memory) as folder:
        assert folder == corpus
    assert "open to others" in capsys.readouterr().err
