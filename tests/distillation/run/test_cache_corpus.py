"""The program that makes a cache: goes on after whatever ended it, to the same bytes; refuses what does not fit."""

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from src.distillation.corpus.packed_rows import PackedRows
from src.distillation.teachers.direct import DirectTeacher
from tests.distillation.cache_samples import (
    batch_of,
    cached,
    direct,
    divergence,
    manifest_of,
    relative,
    same_signal,
    write_all,
    write_cache,
)
from tests.distillation.corpus_samples import contents, preprocess_folder, texts, write_jsonl
from tests.distillation.teacher_samples import write_llama
from tests.tiny import ROOT, TORCHRUN, end, run_door, run_python, start_python


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_all(tmp_path_factory.mktemp("program"))
    write_cache(root)
    return root


def write_fails(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The message that the program leaves with, which is one of ours."""
    with pytest.raises(SystemExit) as left:
        write_cache(root, *flags)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_every_row_of_both_splits_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sum(facts.rows for facts in manifest_of(root).splits.values())
    write_cache(root, "--verify")
    assert f"{rows} of the corpus's {rows} rows, 0 of them new" in capsys.readouterr().out
    for split in ("train", "val"):
        batch = batch_of(root, [0, 1], split)
        assert relative(divergence(cached(root).signal(batch)), divergence(direct(root).signal(batch))) < 1e-3


def test_a_killed_run_goes_on_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    command = ["-c", SLOW, ROOT, "--data-path", root / "packed", "--output-dir", tmp_path]
    command += ["--teacher-model", root / "teacher", "--topk", "16", "--batch-size", "3", "--shard-size", "8"]
    process = start_python(command, ROOT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cache.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert end(process).code == -signal.SIGKILL
    (tmp_path / "shard-00007.parquet.tmp").write_bytes(b"half")
    before, expected = contents(tmp_path), contents(root / "cache")
    assert before["shard-00000.parquet"] == expected["shard-00000.parquet"]
    assert len(before) < len(expected)
    write_cache(root, "--output-dir", str(tmp_path))
    assert contents(tmp_path) == expected


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from scripts.cache_teacher_logits import main
from src.distillation.teachers import direct as direct_teacher
answer = direct_teacher.DirectTeacher.signal
def slow(self, batch):
    time.sleep(0.3)
    return answer(self, batch)
direct_teacher.DirectTeacher.signal = slow
main(sys.argv[2:])
"""


def test_two_ranks_of_which_one_is_killed_go_on_to_the_bytes_of_one_process(root: Path, tmp_path: Path) -> None:
    flags = ["--data-path", root / "packed", "--teacher-model", root / "teacher", "--topk", "16", "--batch-size", "3"]
    flags += ["--shard-size", "4", "--output-dir", tmp_path / "two"]
    write_cache(root, "--shard-size", "4", "--output-dir", str(tmp_path / "one"))
    (tmp_path / "killed.py").write_text(KILLED)
    killed = run_python([*TORCHRUN, tmp_path / "killed.py", ROOT, *flags], ROOT)
    assert killed.code != 0 and "SIGKILL" in killed.err
    before, expected = contents(tmp_path / "two"), contents(tmp_path / "one")
    assert before["shard-00001.parquet"] == expected["shard-00001.parquet"] and "shard-00003.parquet" not in before
    resumed = run_python([*TORCHRUN, ROOT / "scripts" / "cache_teacher_logits.py", *flags], ROOT)
    assert resumed.code == 0, resumed.err
    assert len(resumed.out.splitlines()) == 2 and f"{len(expected) - 1} shards" in resumed.out
    assert contents(tmp_path / "two") == expected


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from scripts.cache_teacher_logits import main
from src.distillation.teachers import direct as direct_teacher
answer, asked = direct_teacher.DirectTeacher.signal, []
def mortal(self, batch):
    asked.append(1)
    if os.environ["RANK"] == "1" and len(asked) == 3:  # the first batch of its second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, batch)
direct_teacher.DirectTeacher.signal = mortal
main(sys.argv[2:])
"""


def test_ctrl_c_keeps_what_was_finished(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, asked = DirectTeacher.signal, []

    def interrupted(self: DirectTeacher, batch: Any) -> Any:
        asked.append(1)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return answer(self, batch)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(DirectTeacher, "signal", interrupted)
        write_cache(root, "--output-dir", str(tmp_path))
    assert left.value.code == 130 and "interrupted" in capsys.readouterr().err
    assert sorted(contents(tmp_path)) == ["cache.json", "shard-00000.parquet"]
    write_cache(root, "--output-dir", str(tmp_path))
    assert contents(tmp_path) == contents(root / "cache")


def test_a_full_disk_is_said_and_survived(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = write_fails(root, capsys, "--output-dir", str(tmp_path))
    assert "shard-00000.parquet" in message and "The disk is full" in message
    assert contents(tmp_path) == {}
    write_cache(root, "--output-dir", str(tmp_path))
    assert contents(tmp_path) == contents(root / "cache")


def test_a_part_first_and_the_rest_later_is_the_whole(root: Path, tmp_path: Path) -> None:
    write_cache(root, "--output-dir", str(tmp_path), "--max-sequences", "8")
    assert sorted(contents(tmp_path)) == ["cache.json", "shard-00000.parquet"]
    write_cache(root, "--output-dir", str(tmp_path), "--split", "train")
    batch = batch_of(root, [0, 9])
    assert cached(root, cache_dir=tmp_path).signal(batch).valid.any()
    with pytest.raises(ValueError, match="row"):
        cached(root, cache_dir=tmp_path).signal(batch_of(root, [0], "val"))


@pytest.mark.parametrize("is_old", [False, True])
def test_answers_stay_where_the_corpus_grows_and_go_with_what_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_old: bool
) -> None:
    def counted() -> int:
        return sum(facts.rows for facts in manifest_of(root).splits.values())

    root = write_all(tmp_path)
    write_cache(root)
    former, answers = counted(), cached(root).signal(batch_of(root, [0, 3]))
    if is_old:  # caches of before know the fingerprint of the whole corpus only
        file = root / "cache" / "cache.json"
        cache = json.loads(file.read_text())
        file.write_text(json.dumps(cache | {"shards": [without(shard, "corpus") for shard in cache["shards"]]}))
    add = ("--val-fraction", "0.2", "--skip-existing")
    write_jsonl(root / "raw" / "more.jsonl", texts(40))
    preprocess_folder(root, *add)
    assert same_signal(cached(root).signal(batch_of(root, [0, 3])), answers)
    capsys.readouterr()
    write_cache(root)
    added = counted() - former
    assert f"{counted()} of the corpus's {counted()} rows, {added} of them new" in capsys.readouterr().out

    write_jsonl(root / "raw" / "markov.jsonl", texts(60, start=100))
    preprocess_folder(root, *add)
    write_cache(root)
    told = capsys.readouterr().out
    assert f"{counted()} rows, {counted() - added} of them new" in told and f"{former} rows more" in told
    for split in ("train", "val"):
        last = len(PackedRows(root / "packed", split)) - 1
        batch = batch_of(root, [0, last], split)
        assert relative(divergence(cached(root).signal(batch)), divergence(direct(root).signal(batch))) < 1e-3


def without(facts: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != key}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topk", "8"], "teacher_topk=16"),
        (["--kind", "sampled"], "teacher_kind=topk"),
        (["--temperature", "2"], "temperatures 1"),
        (["--value-dtype", "u8"], "fp16"),
        (["--no-resume"], "--resume"),
    ],
)
def test_a_cache_of_something_else_is_not_gone_on_with(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    before = contents(root / "cache")
    message = write_fails(root, capsys, *flags)
    assert words in message and str(root / "cache") in message
    assert contents(root / "cache") == before


def test_another_teacher_tokenizer_or_corpus_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path / "other", seed=3)
    assert "another teacher" in write_fails(root, capsys, "--teacher-model", str(tmp_path / "other"))
    other = write_all(tmp_path / "b")
    manifest = (other / "packed" / "manifest.json").read_text()
    sha = manifest_of(other).tokenizer.sha256
    (other / "packed" / "manifest.json").write_text(manifest.replace(sha, "0" * 64))
    message = write_fails(root, capsys, "--data-path", str(other / "packed"))
    assert "corpus" in message and "tokenizer" in message
    assert "another corpus" in write_fails(root, capsys, "--verify", "--data-path", str(other / "packed"))
    assert "manifest.json" in write_fails(root, capsys, "--data-path", str(tmp_path / "none"))


def test_a_damaged_shard_is_not_built_on(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(root, "--output-dir", str(tmp_path))
    file = tmp_path / "shard-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    message = write_fails(root, capsys, "--output-dir", str(tmp_path))
    assert str(file) in message and "SHA-256" in message


def test_the_door_needs_a_teacher_and_explains_itself() -> None:
    shown = run_door("scripts/cache_teacher_logits.py", "--help")
    assert shown.code == 0 and "--teacher-url" in shown.out and "--no-resume" in shown.out
    needed = ("--data-path", "a", "--output-dir", "b")
    assert "--teacher-url" in run_door("scripts/cache_teacher_logits.py", *needed).err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "2"], "workers"),
        (["--teacher-url", "http://a", "--device", "cpu"], "device"),
    ],
)
def test_a_flag_of_the_other_kind_of_teacher_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert words in write_fails(root, capsys, *flags)
