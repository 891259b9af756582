"""The maze builder: equal to the reference, honest splits when it makes mazes, refusals in words."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_maze_dataset import main
from dataset.common import dihedral_transform
from dataset.puzzles.format import open_split
from dataset.puzzles.maze import PATH, dihedral_key, maze_problem
from tests.dataset.puzzle_samples import assert_equals_parity, parity_json

ROOT = Path(__file__).parents[2]
RUNS = {"plain": [], "aug": ["--aug", "--subsample-size", "2"]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "csv"
    folder.mkdir()
    for split, text in parity_json("builder_inputs")["maze"].items():
        (folder / f"{split}.csv").write_bytes(text.encode())
    return folder


def boards(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    puzzles = open_split(folder, split).sets["all"]
    return np.asarray(puzzles.inputs), np.asarray(puzzles.labels)


@pytest.mark.parametrize("run", RUNS)
def test_output_equals_the_reference(source: Path, tmp_path: Path, run: str) -> None:
    main(["--source", str(source), "--output-dir", str(tmp_path / "out"), "--seed", "42", *RUNS[run]])
    assert_equals_parity(tmp_path / "out", f"maze/{run}")


@pytest.mark.parametrize("form", [["-m", "dataset.build_maze_dataset"], [str(ROOT / "dataset/build_maze_dataset.py")]])
def test_both_ways_of_running_print_one_line(tmp_path: Path, form: list[str]) -> None:
    command = [sys.executable, *form, "--generate", "7", "--count", "4", "--test-count", "3", "--output-dir", "out"]
    environment = os.environ | ({"PYTHONPATH": str(ROOT)} if form[0] == "-m" else {})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "out: 4 train mazes, 3 test mazes; seq_len 49, vocab_size 6\n"
    assert len(boards(tmp_path / "out", "train")[0]) == 4


@pytest.mark.parametrize(("size", "min_length"), [(7, None), (8, 10)])
def test_made_mazes_are_valid_and_the_splits_share_none(tmp_path: Path, size: int, min_length: int | None) -> None:
    flags = [
        "--generate",
        str(size),
        "--count",
        "50",
        "--test-count",
        "20",
        "--output-dir",
        str(tmp_path / "d"),
        "--check",
    ]
    main(flags + ([] if min_length is None else ["--min-length", str(min_length)]))
    keys = {}
    for split, count in (("train", 50), ("test", 20)):
        questions, answers = boards(tmp_path / "d", split)
        assert all(maze_problem(pair) is None for pair in zip(questions, answers, strict=True))
        assert ((answers == PATH).sum(axis=1) + 1).min() >= (min_length or size)
        keys[split] = {dihedral_key(question) for question in questions}
        assert len(keys[split]) == len(questions) == count
    assert not keys["train"] & keys["test"]


def test_made_mazes_are_trained_in_all_orientations(tmp_path: Path) -> None:
    main(["--generate", "6", "--count", "3", "--test-count", "2", "--aug", "--output-dir", str(tmp_path / "d")])
    questions, answers = boards(tmp_path / "d", "train")
    assert len(questions) == 24 and len(boards(tmp_path / "d", "test")[0]) == 2
    assert open_split(tmp_path / "d", "train").metadata.total_groups == 3
    for tid in range(8):
        np.testing.assert_array_equal(
            questions[8 + tid].reshape(6, 6), dihedral_transform(questions[8].reshape(6, 6), tid)
        )
        assert maze_problem((questions[tid], answers[tid])) is None


def test_check_names_the_lines_of_bad_mazes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"of 4 train puzzles.*Line 2: \d+ shortest paths"):
        main(["--source", str(source), "--output-dir", str(tmp_path / "d"), "--check"])
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question,answer", "maze,path", "source, maze, path, rating; .*answer, question"),
        ("maze0, ##", "maze0,x##", "line 2: .*'x' in cell 0"),
    ],
)
def test_unusable_csv_is_refused_and_nothing_is_left(
    source: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = source / "train.csv"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(SystemExit, match=message):
        main(["--source", str(source), "--output-dir", str(tmp_path / "out")])
    assert sorted(os.listdir(tmp_path)) == ["csv"]


def test_maze_that_is_not_square_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question,answer\nS G,SoG\n")
    with pytest.raises(SystemExit, match="3 cells"):
        main(["--source", str(tmp_path), "--output-dir", str(tmp_path / "d")])


def test_splits_of_different_size_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "test.csv").write_text("question,answer\nS  G,So G\n")
    with pytest.raises(SystemExit, match=r"\[4, 49\] cells"):
        main(["--source", str(source), "--output-dir", str(tmp_path / "d")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generate", "4", "--count", "3"], "a maze has at least 5 x 5 cells"),
        (["--generate", "9"], "--generate needs --count"),
        (["--min-length", "9"], "--min-length has no meaning without --generate"),
        (["--generate", "9", "--count", "3", "--source-repo", "x/y"], "--source-repo has no meaning together with"),
    ],
)
def test_flags_without_effect_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_path_longer_than_any_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.puzzles.boards.MAX_FRUITLESS_DRAWS", 50)
    with pytest.raises(SystemExit, match="Found 0 of 100 test"):
        main(["--generate", "5", "--count", "3", "--min-length", "20", "--output-dir", str(tmp_path / "d")])
