"""Parts that are preprocessed apart and joined are the files of a single run, or refused by name."""

import shutil
from pathlib import Path

import pytest

from src.distillation.corpus.parts import files_of_part, part_folder
from tests.distillation.corpus_samples import contents, preprocess_fails, preprocess_folder, texts, write_jsonl

SAMPLES = {"a.jsonl": 30, "b.jsonl": 3, "c/a.jsonl": 17, "c/d.jsonl": 1, "e.jsonl": 9}
FLAGS = ("--val-fraction", "0.2", "--shard-size", "1K")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw`, `packed` of a single run, and the three parts of it."""
    root = tmp_path_factory.mktemp("whole")
    for number, (name, count) in enumerate(SAMPLES.items()):
        write_jsonl(root / "raw" / name, texts(count, start=100 * number))
    preprocess_folder(root, *FLAGS)
    for part in ("3/3", "1/3", "2/3"):
        preprocess_folder(root, *FLAGS, "--part", part, "--output", str(root / "joined"))
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def join(root: Path, *flags: str) -> None:
    preprocess_folder(root, *FLAGS, "--join", "--output", str(root / "joined"), *flags)


def join_fails(root: Path, *flags: str) -> str:
    told = preprocess_fails(root, *FLAGS, "--join", "--output", str(root / "joined"), *flags)
    assert not (root / "joined" / "manifest.json").exists()
    return told


def test_joined_parts_are_the_files_of_a_single_run(root: Path) -> None:
    assert len(contents(root / "packed")) > len(SAMPLES) + 3, "some file has several shards"
    join(root)
    assert contents(root / "joined") == contents(root / "packed")


def test_a_join_that_was_cut_short_goes_on(root: Path) -> None:
    shutil.copytree(root / "raw", root / "all")
    for name in ("c/d.jsonl", "e.jsonl"):
        (root / "raw" / name).unlink()
    preprocess_folder(root, *FLAGS, "--output", str(root / "joined"))
    join(root, "--input", str(root / "all"), "--skip-existing")
    assert contents(root / "joined") == contents(root / "packed")


def test_there_may_be_more_parts_than_files(root: Path) -> None:
    for number in range(1, 8):
        preprocess_folder(root, *FLAGS, "--part", f"{number}/7", "--output", str(root / "many"))
    join(root, "--output", str(root / "many"))
    assert contents(root / "many") == contents(root / "packed")


def test_every_file_is_in_one_part_of_about_the_same_size(tmp_path: Path) -> None:
    sizes = [90, 10, 40, 50, 10, 60, 1]
    files = [tmp_path / f"{number}.jsonl" for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(b"x" * size)
    parts = [files_of_part(files, number, 3) for number in (1, 2, 3)]
    assert sorted(file for part in parts for file in part) == files
    assert all(part == sorted(part) for part in parts)
    assert {sum(file.stat().st_size for file in part) for part in parts} <= set(range(80, 96))


def test_a_part_that_is_missing_is_named(root: Path) -> None:
    shutil.rmtree(part_folder(root / "joined", 2, 3))
    assert "--part 2/3" in join_fails(root)
    shutil.rmtree(root / "joined-parts")
    assert "joined-parts" in join_fails(root)


def test_parts_of_two_divisions_are_refused(root: Path) -> None:
    preprocess_folder(root, *FLAGS, "--part", "1/2", "--output", str(root / "joined"))
    assert "parts of 2 and parts of 3" in join_fails(root)


def test_a_part_that_is_there_twice_is_named(root: Path) -> None:
    shutil.rmtree(part_folder(root / "joined", 2, 3))
    shutil.copytree(part_folder(root / "joined", 1, 3), part_folder(root / "joined", 2, 3))
    told = join_fails(root)
    assert "a.jsonl is in " in told and "1-of-3" in told and "2-of-3" in told and "is in no part" in told


def test_other_sources_are_named(root: Path) -> None:
    write_jsonl(root / "raw" / "b.jsonl", texts(3, start=900))
    write_jsonl(root / "raw" / "new.jsonl", texts(3, start=950))
    (root / "raw" / "e.jsonl").unlink()
    told = join_fails(root)
    assert (
        "another b.jsonl" in told and "new.jsonl is in no part" in told and "e.jsonl, which is not in the input" in told
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--max-seq-length", "32"), "64 tokens, expected 32"),
        (("--val-fraction", "0.3"), "--val-fraction 0.2, not 0.3"),
        (("--shard-size", "2K"), "--shard-size"),
    ],
)
def test_other_options_are_named(root: Path, flags: tuple[str, ...], told: str) -> None:
    message = join_fails(root, *flags)
    assert told in message and "1-of-3" in message


def test_a_damaged_shard_of_a_part_is_named(root: Path) -> None:
    shard = next(part_folder(root / "joined", 1, 3).rglob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    told = preprocess_fails(root, *FLAGS, "--join", "--output", str(root / "joined"))
    assert str(shard) in told


def test_a_part_goes_on_with_shards_of_one_size(root: Path) -> None:
    more = ("--part", "1/3", "--output", str(root / "joined"), "--skip-existing")
    preprocess_folder(root, *FLAGS, *more)
    assert "--shard-size" in preprocess_fails(root, *FLAGS, *more, "--shard-size", "2K")


@pytest.mark.parametrize("flags", [("--part", "0/3"), ("--part", "4/3"), ("--part", "3"), ("--part", "1/3", "--join")])
def test_a_part_is_one_of_some(tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(3))
    preprocess_fails(tmp_path, *flags)
    assert "part" in capsys.readouterr().err
