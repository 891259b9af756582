"""Answers on disk: as good as the model's own, refused where they are damaged or of something else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import src.distillation.cache.store
from dataset.common import Batch
from src.distillation.cache.format import CacheError
from src.distillation.targets.signal import Teacher, TeacherSignal
from src.distillation.teachers.cached import RecordingTeacher
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

KINDS: list[dict[str, Any]] = [
    {"kind": "topk"},
    {"kind": "topk", "temperatures": (1.0, 2.0)},
    {"kind": "sampled"},
    {"kind": "dense"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("cached"))


def record(root: Path, folder: Path, teacher: Teacher, members: list[list[int]], **options: Any) -> None:
    manifest = manifest_of(root)
    recorder = RecordingTeacher(teacher, folder, manifest, **options)
    for part in members:
        recorder.signal(batch_of(root, part))
    recorder.close()


@pytest.mark.parametrize("value_dtype", ["fp16", "u8"])
@pytest.mark.parametrize("asked", KINDS, ids=["topk", "topk at T=2", "sampled", "dense"])
def test_cached_teaches_what_direct_teaches(
    root: Path, tmp_path: Path, asked: dict[str, Any], value_dtype: Any
) -> None:
    batch, teacher = batch_of(root, [0, 1, 2, 3]), direct(root, **asked)
    record(root, tmp_path, teacher, [[0, 1, 2, 3]], value_dtype=value_dtype)
    said, expected = cached(root, cache_dir=tmp_path, **asked).signal(batch), teacher.signal(batch)
    if expected.ids is not None:
        assert torch.equal(said.ids, expected.ids)
    if expected.shares is not None:
        assert torch.allclose(said.shares, expected.shares)
    assert torch.equal(said.valid, expected.valid) and torch.equal(said.log_norms, expected.log_norms)
    for column, temperature in enumerate(teacher.facts.temperatures):
        assert relative(divergence(said, temperature, column), divergence(expected, temperature, column)) < 1e-3
    assert (said.logprobs.logsumexp(-1)[said.valid] < 1e-5).all(), "rounding made mass out of nothing"


def test_u8_takes_less_room_than_fp16(root: Path, tmp_path: Path) -> None:
    def size(value_dtype: Any) -> int:
        record(root, tmp_path / value_dtype, direct(root, k=64), [list(range(8))], value_dtype=value_dtype)
        return (tmp_path / value_dtype / "shard-00000.parquet").stat().st_size

    assert size("u8") < 0.9 * size("fp16")


def test_recording_changes_no_answer_and_writes_every_row_once(root: Path, tmp_path: Path) -> None:
    manifest, teacher = manifest_of(root), direct(root)
    recorder = RecordingTeacher(teacher, tmp_path, manifest, shard_rows=4)
    for part in ([5, 1, 7], [1, 0, 2], [5, 7, 3]):
        batch = batch_of(root, part)
        assert same_signal(recorder.signal(batch), teacher.signal(batch))
    recorder.close()
    record(root, tmp_path, teacher, [[3, 4]])  # another run goes on
    shards = json.loads((tmp_path / "cache.json").read_text())["shards"]
    rows = [first + index for shard in shards for first, count in shard["runs"] for index in range(count)]
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 7] and [len(shard["runs"]) for shard in shards] == [3, 1, 1]
    batch = batch_of(root, [7, 4, 0])
    said, expected = cached(root, cache_dir=tmp_path).signal(batch), teacher.signal(batch)
    assert torch.equal(said.ids, expected.ids) and relative(divergence(said), divergence(expected)) < 1e-3


def test_a_run_that_records_leaves_a_cache(root: Path, tmp_path: Path) -> None:
    batch, recording = batch_of(root, [2]), direct(root, record=True, cache_dir=tmp_path)
    expected = recording.signal(batch)
    recording.close()
    assert torch.equal(cached(root, cache_dir=tmp_path).signal(batch).ids, expected.ids)


def test_empty_rows_say_nothing(root: Path, tmp_path: Path) -> None:
    record(root, tmp_path, direct(root), [[0]])
    batch = batch_of(root, [0, 1])
    batch["row_id"][1], batch["documents"][1] = -1, -1
    said = cached(root, cache_dir=tmp_path).signal(batch)
    assert said.valid[0].any() and not said.valid[1].any()


def test_a_missing_row_is_named_with_the_command(root: Path, tmp_path: Path) -> None:
    record(root, tmp_path, direct(root), [[0, 1]])
    with pytest.raises(CacheError) as found:
        cached(root, cache_dir=tmp_path).signal(batch_of(root, [0, 6, 7]))
    message = str(found.value)
    assert str(tmp_path) in message and "row 6" in message and "1 more" in message
    assert "cache_teacher_logits.py" in message and f"--output-dir {tmp_path}" in message
    assert "--kind topk --topk 16" in message and "on_missing=direct" in message


def test_missing_rows_are_asked_of_the_model_and_kept(root: Path, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"cache_dir": tmp_path, "on_missing": "direct", "model": str(root / "teacher")}
    first = cached(root, **ask)  # not even a cache is there
    batch = batch_of(root, [0, 6])
    expected = direct(root).signal(batch)
    assert same_signal(first.signal(batch), expected)
    first.close()
    second = cached(root, **ask)
    more = batch_of(root, [6, 2])
    assert torch.equal(second.signal(more).ids, direct(root).signal(more).ids)
    second.close()
    assert torch.equal(cached(root, cache_dir=tmp_path).signal(batch_of(root, [2, 6, 0])).ids[2], expected.ids[0])

    ask["model"] = str(root / "other")
    from tests.distillation.teacher_samples import write_llama

    write_llama(root / "other", seed=7)
    with pytest.raises(CacheError, match="another teacher"):
        cached(root, **ask).signal(batch_of(root, [9]))


def test_what_was_written_on_the_way_is_not_asked_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked = DirectTeacher.signal, list[int]()

    def counted(self: DirectTeacher, batch: Batch) -> TeacherSignal:
        asked.extend(batch["row_id"].tolist())
        return answer(self, batch)

    monkeypatch.setattr(DirectTeacher, "signal", counted)
    monkeypatch.setattr(src.distillation.cache.store, "MAX_SHARD_ROWS", 2)
    teacher = cached(root, cache_dir=tmp_path, on_missing="direct", model=str(root / "teacher"))
    for part in ([3, 5], [5, 1], [3, 5]):
        said = teacher.signal(batch_of(root, part))
    assert asked == [3, 5, 1] and said.valid.any(-1).all()
    teacher.close()


def test_rows_that_stand_elsewhere_are_noticed(root: Path, tmp_path: Path) -> None:
    record(root, tmp_path, direct(root), [[0, 1, 2]])
    text = (tmp_path / "cache.json").read_text()
    cache = json.loads(text)
    cache["shards"][0]["runs"] = [[1, 3]]
    (tmp_path / "cache.json").write_text(json.dumps(cache))
    with pytest.raises(CacheError, match="shard-00000.parquet .*row 1 "):
        cached(root, cache_dir=tmp_path).signal(batch_of(root, [2]))


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    write_cache(root)
    return root / "cache"


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one bit": (flip_one_bit, r"SHA-256 \w+, expected"),
    "cut off": (lambda file: os.truncate(file, file.stat().st_size - 10), r"\d+ bytes, expected \d+"),
    "deleted": (lambda file: file.unlink(), "it is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(root: Path, whole: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = whole / "shard-00001.parquet"
    sound = file.read_bytes()
    apply, words = DAMAGES[damage]
    apply(file)
    with pytest.raises(CacheError, match=rf"{file} .*{words}.*cache_teacher_logits.py"):
        cached(root).signal(batch_of(root, range(8, 12)))
    with pytest.raises(SystemExit) as left:
        write_cache(root, "--verify")
    assert left.value.code == 2 and str(file) in capsys.readouterr().err
    file.unlink(missing_ok=True)
    write_cache(root)  # what the message says
    assert file.read_bytes() == sound
    capsys.readouterr()


def test_a_page_that_changes_later_is_noticed(root: Path, whole: Path) -> None:
    teacher = cached(root)
    teacher.signal(batch_of(root, [0]))  # the checksum of the first shard has been compared
    file = whole / "shard-00000.parquet"
    sound = file.read_bytes()
    try:
        flip_one_bit(file)
        with pytest.raises(CacheError, match=str(file)):
            for _ in range(2):  # whatever row group the bit is in
                teacher._reader.files.forget()
                teacher.signal(batch_of(root, range(8)))
    finally:
        file.write_bytes(sound)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 8}, "teacher_topk=16.*8"),
        ({"kind": "sampled"}, "teacher_kind=topk.*sampled"),
        (
            {"tokenizer": {"sha256": "f" * 64, "name": "elsewhere"}},
            "tokenizer .*elsewhere",
        ),
        ({"corpus": "of no source"}, "rows of another corpus"),
        ({"tokenizer": {"vocab_size": 300}}, "259 ids.*300"),
    ],
)
def test_a_cache_of_something_else_is_refused(root: Path, whole: Path, changes: dict[str, Any], words: str) -> None:
    if "corpus" in changes:
        changes = {"corpus": manifest_of(root).with_first_sources(0)}
    with pytest.raises(CacheError, match=rf"{whole}/cache.json .*{words}"):
        cached(root, cache_dir=whole, **changes)


def test_a_temperature_that_is_not_stored_is_refused(root: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="--temperature"):
        cached(root, temperatures=(1.0, 2.0))


def test_no_cache_and_a_damaged_list_say_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cache.json in .*scripts/cache_teacher_logits.py"):
        cached(root, cache_dir=tmp_path)
    (tmp_path / "cache.json").write_text('{"version": 7}')
    with pytest.raises(CacheError, match=r"cache.json.*version"):
        cached(root, cache_dir=tmp_path)


def test_two_writers_in_one_folder_are_refused(root: Path, tmp_path: Path) -> None:
    manifest, teacher = manifest_of(root), direct(root)
    recorder = RecordingTeacher(teacher, tmp_path, manifest)
    with pytest.raises(ValueError, match=str(tmp_path)):
        RecordingTeacher(teacher, tmp_path, manifest)
    recorder.close()
    RecordingTeacher(teacher, tmp_path, manifest).close()
