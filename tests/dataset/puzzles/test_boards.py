"""CSV files: rows that cannot be used are named by their line. Drawing puzzles: distinct, no family in two splits."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import dataset.puzzles.boards
from dataset.puzzles.boards import (
    Boards,
    Puzzle,
    check_boards,
    csv_files,
    draw_puzzles,
    generated_boards,
    ordered_map,
    read_boards,
)

SYMBOLS = {".": 0, "a": 1, "b": 2}


def write(folder: Path, text: str, name: str = "train.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_rows_become_arrays(tmp_path: Path) -> None:
    boards = read_boards(write(tmp_path, "source,question,answer,rating\nx,.a,ba,3\nx,b.,ba,7\n"), SYMBOLS)
    assert boards.questions.tolist() == [[0, 1], [2, 0]]
    assert boards.answers.tolist() == [[2, 1], [2, 1]]
    assert boards.places.tolist() == [2, 3]
    assert boards.questions.dtype == np.uint8


def test_rating_chooses_rows(tmp_path: Path) -> None:
    file = write(tmp_path, "question,answer,rating\n.a,ba,3\nb.,ba,7\n")
    assert read_boards(file, SYMBOLS, min_rating=4).places.tolist() == [3]
    with pytest.raises(ValueError, match="rated 8"):
        read_boards(file, SYMBOLS, min_rating=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\); expected answer, question"),
        ("question,solution\n", "question, solution; .*answer, question"),
        ("question,answer\n", "holds no boards"),
        ("question,answer\n.a,ba\n.x,ba\n", "line 3: unknown symbol 'x' in cell 1; known are '.ab'"),
        ("question,answer\n.a,ba\n.a,bä\n", r"line 3: unknown symbol '\?' in cell 1"),
        (
            "question,answer\n.a,ba\n.a,b\n",
            "line 3: question of 2 and answer of 1 cells; expected 2, as in the first row",
        ),
        ("question,answer\n.a,ba\n...,bab\n", "line 3: question of 3 and answer of 3 cells; expected 2"),
        (f'question,answer\n.a,ba\n"{"." * 131_073}",ba\n', "train.csv, after line 2: .*131072"),
        ("question,answer\n.a,ba\n.a\n", "line 3: question of 2 and answer of 0 cells"),
        ("question,answer\n,\n", "line 2: question of 0"),
    ],
)
def test_unusable_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_boards(write(tmp_path, text), SYMBOLS)


def test_missing_or_odd_rating_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected answer, question, rating"):
        read_boards(write(tmp_path, "question,answer\n.a,ba\n"), SYMBOLS, min_rating=1)
    with pytest.raises(ValueError, match="line 2: the rating"):
        read_boards(write(tmp_path, "question,answer,rating\n.a,ba,hard\n"), SYMBOLS, min_rating=1)


def test_source_is_a_folder_or_one_file(tmp_path: Path) -> None:
    train, test = (write(tmp_path, "", f"{split}.csv") for split in ("train", "test"))
    assert csv_files(tmp_path, "unused") == {"train": train, "test": test}
    assert csv_files(test, "unused") == {"test": test}
    with pytest.raises(ValueError, match=r"train.csv and test.csv.*no CSV"):
        csv_files(write(tmp_path, "", "puzzles.csv"), "unused")
    with pytest.raises(ValueError, match="train.csv.*not exist"):
        csv_files(tmp_path / "nowhere", "unused")


def test_check_lists_the_lines_of_bad_boards() -> None:
    pairs = np.arange(15).reshape(-1, 1)
    boards = Boards(pairs, pairs, np.arange(15) + 2)
    with pytest.raises(ValueError) as error:
        check_boards(boards, lambda pair: "too large" if pair[0][0] >= 3 else None, "train", num_workers=1)
    text = str(error.value)
    assert text.startswith("12 of 15 train puzzles are not valid. Line 5: too large; line 6: too large")
    assert "line 14: too large; and 2 more" in text
    check_boards(boards, lambda pair: None, "train", num_workers=1)


def numbered(modulus: int, number: int) -> Puzzle | None:
    """Every third draw fails; `modulus` different puzzles exist, ten to a family."""
    value = number * 7 % modulus
    if number % 3 == 0:
        return None
    return Puzzle(np.array([value]), np.array([value]), key=str(value).encode(), family=value // 10)


def values(puzzles: list[Puzzle]) -> list[int]:
    return [int(puzzle.question[0]) for puzzle in puzzles]


def test_splits_are_distinct_and_share_no_family() -> None:
    train, test = draw_puzzles(partial(numbered, 1000), num_train=300, num_test=40).values()
    assert len(train) == len(set(values(train))) == 300
    assert len(test) == len({value // 10 for value in values(test)}) == 40
    assert not {value // 10 for value in values(test)} & {value // 10 for value in values(train)}


def test_exhaustion_is_an_error_that_counts() -> None:
    with pytest.raises(ValueError, match="5 of 5 test and 50 of 60 training.* 5000 draws"):
        draw_puzzles(partial(numbered, 100), num_train=60, num_test=5)


def test_processes_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(map(partial(numbered, 1000), range(500)))
    monkeypatch.setattr(dataset.puzzles.boards, "POOL_PAYS_SECONDS", 0.0)
    shared = list(ordered_map(partial(numbered, 1000), range(500), 500, num_workers=2))
    assert [p and p.key for p in shared] == [p and p.key for p in alone]
    assert values(draw_puzzles(partial(numbered, 1000), 200, 20, num_workers=2)["train"]) == values(
        draw_puzzles(partial(numbered, 1000), 200, 20)["train"]
    )


@pytest.mark.parametrize(("num_train", "num_test"), [(10, 100), (1500, 150), (12_000, 1000)])
def test_default_test_count_stays_sensible(num_train: int, num_test: int) -> None:
    args = Namespace(count=num_train, test_count=None, num_workers=1)
    made = generated_boards(args, lambda n: Puzzle(np.array([n]), np.array([n]), key=str(n).encode(), family=n))
    assert (len(made["train"]), len(made["test"])) == (num_train, num_test)
