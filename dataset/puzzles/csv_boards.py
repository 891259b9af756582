"""Reads boards from CSV files with the columns question and answer: one character a cell, row by row."""

import csv
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.puzzles.generation import ordered_map

UNKNOWN = 255
MAX_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Boards:
    questions: np.ndarray  # (boards, cells) uint8, as coded by the symbols
    answers: np.ndarray  # (boards, cells) uint8
    places: np.ndarray  # (boards,) where each one came from: line in the file, or number of the generated puzzle

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, indices: np.ndarray) -> "Boards":
        return Boards(self.questions[indices], self.answers[indices], self.places[indices])


def csv_files(source: Path | None, source_repo: str) -> dict[str, Path]:
    """The CSV file of each split: from a local folder or file, else from the Hub."""
    if source is None:
        return {split: _download(source_repo, f"{split}.csv") for split in ("train", "test")}
    if source.is_file() and source.stem in ("train", "test"):
        return {source.stem: source}
    files = {split: source / f"{split}.csv" for split in ("train", "test")}
    found = {split: file for split, file in files.items() if file.is_file()}
    if not found:
        raise ValueError(
            f"--source {source}: expected a folder with train.csv and test.csv, or one such file "
            f"({'no CSV of that name there' if source.exists() else 'it does not exist'})."
        )
    return found


def _download(repo: str, file_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id=repo, filename=file_name, repo_type="dataset"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise ValueError(
            f"Cannot get {file_name} of '{repo}' from the Hub ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Check the network and --source-repo; or pass --source FOLDER with train.csv and test.csv, or make puzzles "
            "with --generate."
        ) from error


def read_boards(file: Path, symbols: dict[str, int], min_rating: int | None = None) -> Boards:
    """Read a CSV file; `symbols` gives the code of each character, rows rated below `min_rating` are left out."""
    questions, answers, lines = bytearray(), bytearray(), array("q")
    num_cells = 0
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        needed = {"question", "answer"} | ({"rating"} if min_rating is not None else set())
        if not needed <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{file} has the columns {', '.join(reader.fieldnames or ()) or '(none)'}; "
                f"expected {', '.join(sorted(needed))}."
            )
        for row in tqdm(reader, desc=file.name, unit=" rows"):
            question, answer = row["question"] or "", row["answer"] or ""
            num_cells = num_cells or len(question)
            if not len(question) == len(answer) == num_cells > 0:
                raise ValueError(
                    f"{file}, line {reader.line_num}: question of {len(question)} and answer of {len(answer)} cells; "
                    f"expected {num_cells or 'at least one'}, as in the first row."
                )
            if min_rating is not None and _rating(row["rating"], file, reader.line_num) < min_rating:
                continue
            questions += question.encode("ascii", "replace")
            answers += answer.encode("ascii", "replace")
            lines.append(reader.line_num)
    if not lines:
        raise ValueError(f"{file} holds no boards{'' if min_rating is None else f' rated {min_rating} or more'}.")
    places = np.array(lines)
    coded = [_coded(text, num_cells, symbols, places, file) for text in (questions, answers)]
    return Boards(coded[0], coded[1], places)


def _rating(text: str | None, file: Path, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise ValueError(f"{file}, line {line}: the rating {text!r} is no whole number.") from None


def _coded(text: bytearray, num_cells: int, symbols: dict[str, int], places: np.ndarray, file: Path) -> np.ndarray:
    codes = np.full(256, UNKNOWN, dtype=np.uint8)
    codes[[ord(symbol) for symbol in symbols]] = list(symbols.values())
    characters = np.frombuffer(text, dtype=np.uint8).reshape(-1, num_cells)
    boards = codes[characters]
    if boards.max() == UNKNOWN:
        row, cell = np.argwhere(boards == UNKNOWN)[0]
        raise ValueError(
            f"{file}, line {places[row]}: unknown symbol {chr(characters[row, cell])!r} in cell {cell}; "
            f"known are {''.join(symbols)!r}."
        )
    return boards


def check_boards(
    boards: Boards, problem: Callable[[tuple[np.ndarray, np.ndarray]], str | None], origin: str, num_workers: int
) -> None:
    """Raise an error that lists the boards in which `problem` finds one."""
    pairs: Iterable[tuple[np.ndarray, np.ndarray]] = zip(boards.questions, boards.answers, strict=True)
    found = ordered_map(problem, pairs, len(boards), num_workers)
    bar = tqdm(found, total=len(boards), desc=f"checking {origin}", unit=" puzzles")
    bad = [f"{place}: {text}" for place, text in zip(boards.places, bar, strict=True) if text is not None]
    if bad:
        shown = "; line ".join(bad[:MAX_PROBLEMS_SHOWN])
        more = f"; and {len(bad) - MAX_PROBLEMS_SHOWN} more" if len(bad) > MAX_PROBLEMS_SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {len(boards)} {origin} puzzles are not valid. Line {shown}{more}. Correct or remove them."
        )
