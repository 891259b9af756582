"""The Sudoku builder: equal to the reference, honest splits when it makes puzzles, refusals in words."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_sudoku_dataset import main
from dataset.puzzles.format import open_split
from dataset.puzzles.sudoku import SHAPES, renaming_key, solutions, symmetry_key
from tests.dataset.puzzle_samples import assert_equals_parity, parity_json

ROOT = Path(__file__).parents[2]
RUNS = {
    "plain": [],
    "aug": ["--subsample-size", "3", "--num-aug", "2"],
    "min_difficulty": ["--min-difficulty", "5"],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "csv"
    folder.mkdir()
    for split, text in parity_json("builder_inputs")["sudoku"].items():
        (folder / f"{split}.csv").write_bytes(text.encode())
    return folder


def boards(folder: Path, split: str, field: str = "inputs") -> np.ndarray:
    return np.asarray(getattr(open_split(folder, split).sets["all"], field)) - 1


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("run", RUNS)
def test_output_equals_the_reference(source: Path, tmp_path: Path, run: str) -> None:
    main(["--source", str(source), "--output-dir", str(tmp_path / "out"), "--seed", "42", *RUNS[run]])
    assert_equals_parity(tmp_path / "out", f"sudoku/{run}")


def test_seed_changes_the_augmentation(source: Path, tmp_path: Path) -> None:
    for seed in ("1", "1", "2"):
        main(["--source", str(source), "--output-dir", str(tmp_path / seed), "--seed", seed, "--num-aug", "1"])
    assert (boards(tmp_path / "1", "train") != boards(tmp_path / "2", "train")).any()


@pytest.mark.parametrize(
    "form", [["-m", "dataset.build_sudoku_dataset"], [str(ROOT / "dataset/build_sudoku_dataset.py")]]
)
def test_both_ways_of_running_print_one_line(tmp_path: Path, form: list[str]) -> None:
    command = [sys.executable, *form, "--generate", "4x4", "--count", "5", "--test-count", "3", "--output-dir", "out"]
    environment = os.environ | ({"PYTHONPATH": str(ROOT)} if form[0] == "-m" else {})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "out: 5 train puzzles, 3 test puzzles; seq_len 16, vocab_size 6\n"
    assert "puzzles" in done.stderr
    assert len(boards(tmp_path / "out", "train")) == 5


@pytest.mark.parametrize(("size", "count"), [("4x4", 300), ("6x6", 60), ("9x9", 8)])
def test_made_puzzles_are_valid_and_the_splits_share_none(tmp_path: Path, size: str, count: int) -> None:
    shape = SHAPES[size]
    main(
        [
            "--generate",
            size,
            "--count",
            str(count),
            "--test-count",
            "20",
            "--output-dir",
            str(tmp_path / "d"),
            "--check",
        ]
    )
    questions = {split: boards(tmp_path / "d", split) for split in ("train", "test")}
    for split, rows in questions.items():
        answers = boards(tmp_path / "d", split, "labels")
        assert all(solutions(row, shape) == [answer.tolist()] for row, answer in zip(rows, answers, strict=True))
        assert len({renaming_key(row) for row in rows}) == len(rows) == {"train": count, "test": 20}[split]
    families = [{symmetry_key(row, shape) for row in rows} for rows in questions.values()]
    assert not families[0] & families[1]
    metadata = open_split(tmp_path / "d", "train").metadata
    assert (metadata.vocab_size, metadata.seq_len, metadata.total_groups) == (shape.size + 2, shape.num_cells, count)


def test_made_puzzles_depend_on_the_seed_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flags(name: str, seed: str) -> list[str]:
        return [
            "--generate",
            "4x4",
            "--count",
            "20",
            "--test-count",
            "5",
            "--seed",
            seed,
            "--output-dir",
            str(tmp_path / name),
        ]

    main(flags("a", "1"))
    main([*flags("b", "1"), "--num-workers", "2"])
    main(flags("c", "2"))
    assert (boards(tmp_path / "a", "train") == boards(tmp_path / "b", "train")).all()
    assert (boards(tmp_path / "a", "train") != boards(tmp_path / "c", "train")).any()


def test_made_puzzles_can_be_augmented(tmp_path: Path) -> None:
    main(
        [
            "--generate",
            "4x4",
            "--count",
            "6",
            "--test-count",
            "4",
            "--num-aug",
            "3",
            "--output-dir",
            str(tmp_path / "d"),
        ]
    )
    rows, answers = boards(tmp_path / "d", "train"), boards(tmp_path / "d", "train", "labels")
    assert len(rows) == 24 and len(boards(tmp_path / "d", "test")) == 4
    assert open_split(tmp_path / "d", "train").metadata.total_groups == 6
    for group in range(6):
        assert len({symmetry_key(row, SHAPES["4x4"]) for row in rows[group * 4 : group * 4 + 4]}) == 1
    assert all(solutions(row, SHAPES["4x4"]) == [answer.tolist()] for row, answer in zip(rows, answers, strict=True))


def test_clues_set_how_much_is_given(tmp_path: Path) -> None:
    main(
        [
            "--generate",
            "6x6",
            "--count",
            "10",
            "--test-count",
            "5",
            "--clues",
            "20",
            "22",
            "--output-dir",
            str(tmp_path / "d"),
        ]
    )
    given = np.count_nonzero(boards(tmp_path / "d", "train"), axis=1)
    assert given.min() >= 20 and given.max() <= 22


def test_check_names_the_lines_of_bad_puzzles(tmp_path: Path) -> None:
    good, answer = "12..4.....1....3", "1234432134122143"
    twice = "1..." + "." * 12
    none = "11..4.....1....3"
    assert len(solutions([int(cell) for cell in good.replace(".", "0")], SHAPES["4x4"])) == 1
    (tmp_path / "train.csv").write_text(f"question,answer\n{good},{answer}\n")
    flags = ["--source", str(tmp_path / "train.csv"), "--output-dir", str(tmp_path / "out"), "--check"]
    main(flags)
    before = boards(tmp_path / "out", "train").tolist()
    with (tmp_path / "train.csv").open("a") as file:
        file.write(f"{none},{answer}\n{good},{answer}\n{twice},{answer}\n{good},{answer[::-1]}\n")
    with pytest.raises(SystemExit) as error:
        main([*flags, "--overwrite"])
    assert (
        "error: 3 of 5 train puzzles are not valid. Line 3: the puzzle has no solution; "
        "line 5: the puzzle has more than one solution; line 6: the answer does not solve the puzzle. "
    ) in str(error.value)
    assert boards(tmp_path / "out", "train").tolist() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("128953.4.", "128953x4.", "line 2: unknown symbol 'x' in cell 6"),
        (",128953647476", ",.28953647476", "train .*line 2: .*answer.* 1 to 9"),
        (
            "question,answer",
            "puzzle,solution",
            "has the columns source, puzzle, solution, rating; expected answer, question",
        ),
    ],
)
def test_unusable_csv_is_refused_and_nothing_is_left(
    source: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    edit(source / "train.csv", old, new)
    with pytest.raises(SystemExit, match=message):
        main(["--source", str(source), "--output-dir", str(tmp_path / "out")])
    assert sorted(os.listdir(tmp_path)) == ["csv"]


def test_digit_outside_a_small_board_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question,answer\n" + "7" + "." * 15 + "," + "1234341221434321\n")
    with pytest.raises(SystemExit, match="line 2: .*question.* 0 to 4 .*4x4"):
        main(["--source", str(tmp_path), "--output-dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generate", "4x4"], "--generate needs --count"),
        (
            ["--generate", "4x4", "--count", "9", "--subsample-size", "3"],
            "--subsample-size has no meaning together with",
        ),
        (["--generate", "4x4", "--count", "9", "--source", "x"], "--source has no meaning together with --generate"),
        (["--count", "9"], "--count has no meaning without --generate"),
        (["--clues", "5", "6"], "--clues has no meaning without --generate"),
        (["--generate", "5x5", "--count", "9"], "invalid choice: '5x5'"),
        (["--generate", "4x4", "--count", "0"], "0 is not 1 or more"),
        (["--num-aug", "-1"], "-1 is not 0 or more"),
    ],
)
def test_flags_without_effect_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_impossible_wish_says_how_many_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.puzzles.boards.MAX_FRUITLESS_DRAWS", 20)
    with pytest.raises(SystemExit, match="Found 0 of 5 test and 0 of 9 training puzzles"):
        main(
            [
                "--generate",
                "4x4",
                "--count",
                "9",
                "--test-count",
                "5",
                "--clues",
                "1",
                "2",
                "--output-dir",
                str(tmp_path / "d"),
            ]
        )


def test_no_network_names_the_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("dataset.puzzles.boards.hub_problem", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(SystemExit, match="sapientinc/sudoku-extreme.*no route to host.*--source .*--generate"):
        main(["--output-dir", str(tmp_path / "d")])


def test_hub_files_are_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repo_id: str, filename: str, repo_type: str, local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((repo_id, filename, repo_type))
        return str(source / filename)

    monkeypatch.setattr("dataset.puzzles.boards.hub_problem", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    main(["--source-repo", "someone/sudokus", "--output-dir", str(tmp_path / "d")])
    assert asked == [("someone/sudokus", f"{split}.csv", "dataset") for split in ("train", "test")]
    assert_equals_parity(tmp_path / "d", "sudoku/plain")


def test_boards_of_16x16_are_written_with_letters_for_what_has_two_digits(tmp_path: Path) -> None:
    lines = [[(row % 4 * 4 + row // 4 + column) % 16 + 1 for column in range(16)] for row in range(16)]
    answer = "".join("123456789ABCDEFG"[digit - 1] for line in lines for digit in line)
    question = answer[:200] + "." * 3 + answer[203:]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"question,answer\n{question},{answer}\n")
    main(["--source", str(tmp_path), "--output-dir", str(tmp_path / "out"), "--check", "--num-aug", "1"])
    assert boards(tmp_path / "out", "test", "labels").tolist() == [[digit for line in lines for digit in line]]
    found = open_split(tmp_path / "out", "train").metadata
    assert (found.seq_len, found.vocab_size) == (256, 18)
    edit(tmp_path / "train.csv", "G", "H")
    with pytest.raises(SystemExit, match="H"):
        main(["--source", str(tmp_path), "--output-dir", str(tmp_path / "out"), "--overwrite"])
