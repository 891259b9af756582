"""CSV files: rows that cannot be used are named by their line."""

from pathlib import Path

import numpy as np
import pytest

from dataset.puzzles.boards import Boards, check_boards, csv_files, read_boards

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
