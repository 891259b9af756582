"""Everything that can be wrong with the input, the output, the flags, the disk or the installation."""

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

import src.distillation.corpus.shards
from data.preprocess_to_parquet import main
from src.distillation.corpus.manifest import load_manifest
from tests.distillation.corpus_samples import (
    contents,
    preprocess_fails,
    preprocess_folder,
    texts,
    write_jsonl,
)

ROOT = Path(__file__).parents[2]


def test_no_jsonl_is_an_error_that_says_where_it_looked(tmp_path: Path) -> None:
    assert "No JSONL files found" in preprocess_fails(tmp_path)
    write_jsonl(tmp_path / "raw" / "deep" / "a.jsonl", texts(3))
    write_jsonl(tmp_path / "raw" / ".downloads" / "b.jsonl", texts(3))
    with pytest.raises(SystemExit, match=r" 1 .*--recursive"):
        main(["--input", str(tmp_path / "raw"), "--output", str(tmp_path / "packed")])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "cut', "Unterminated string"),
        ("[1]", "found list"),
        ('{"title": "x"}', "title"),
        ('{"text": 5}', "found int"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = write_jsonl(tmp_path / "raw" / "b.jsonl", texts(4))
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(4))
    file.write_text(file.read_text() + f"\n{line}\n" + file.read_text())
    message = preprocess_fails(tmp_path)
    assert f"{file}, line 6:" in message and words in message, message
    assert [source.path for source in load_manifest(tmp_path / "packed").sources] == ["a.jsonl"]


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 999)[:-12])
    assert "a.jsonl.gz is cut off" in preprocess_fails(tmp_path)


def test_texts_that_are_all_empty_are_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", [{"text": ""}])
    assert "with text" in preprocess_fails(tmp_path)


def test_a_refused_start_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text("{")
    assert "line 1" in preprocess_fails(tmp_path)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_said_and_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(30))

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(src.distillation.corpus.shards.os, "fsync", full)
    message = preprocess_fails(tmp_path)
    assert os.strerror(code) in message and "Make room" in message
    assert ("The disk is full" in message) == (code == errno.ENOSPC)
    assert contents(tmp_path / "packed") == {}


def test_a_manifest_of_another_program_is_not_touched(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(3))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "manifest.json").write_text('{"tokenizer": "x", "splits": {}}')
    for flags in ([], ["--skip-existing"], ["--force"]):
        assert "manifest.json" in preprocess_fails(tmp_path, *flags)


def test_without_pyarrow_the_extra_is_named_and_help_works(tmp_path: Path) -> None:
    program = f"""
import runpy, sys
for name in ("pyarrow", "transformers", "tokenizers", "zstandard", "sentencepiece"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT / "data")!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    door = str(ROOT / "data" / "preprocess_to_parquet.py")

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, door, *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("--help")
    assert done.returncode == 0, done.stderr
    for flag in ("--input", "--output", "--recursive", "--skip-existing", "--force", "--max-seq-length", "--tokenizer"):
        assert flag in done.stdout
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(3))
    done = run("--input", "raw", "--output", "packed")
    assert done.returncode == 1
    assert 'pip install -e ".[data]"' in done.stderr


@pytest.mark.parametrize(
    "flags",
    [["--max-seq-length", "1"], ["--val-fraction", "1"], ["--shard-size", "big"], ["--force", "--skip-existing"]],
)
def test_senseless_flags_are_refused(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        preprocess_folder(tmp_path, *flags)
