"""Boards of Sudokus and mazes: from CSV files, the Hub or a generator, with the flags that say which."""

import argparse
import csv
import time
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import Pool
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from dataset.files.download import hub_problem
from dataset.files.flags import add_common_flags, add_workers_flag, positive

DEFAULT_SEED = 42
ONLY_SOURCE = ("source", "source_repo", "subsample_size", "min_difficulty")  # flags that mean nothing to a generator
ONLY_GENERATE = ("count", "test_count", "clues", "min_length")
UNKNOWN = 255
MAX_PROBLEMS_SHOWN = 10
MAX_FRUITLESS_DRAWS = 5000  # in a row, before the puzzles are taken to be exhausted
POOL_PAYS_SECONDS = 5.0  # starting processes costs seconds where they are spawned, not forked
WAVE = 64  # items a process is given at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Boards:
    questions: np.ndarray  # (boards, cells) uint8, as coded by the symbols
    answers: np.ndarray  # (boards, cells) uint8
    places: np.ndarray  # (boards,) where each one came from: line in the file, or number of the generated puzzle

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, indices: np.ndarray) -> "Boards":
        return Boards(self.questions[indices], self.answers[indices], self.places[indices])


@dataclass(frozen=True)
class Puzzle:
    question: np.ndarray
    answer: np.ndarray
    key: bytes  # the same for two puzzles that may not both be in one split
    family: Hashable  # the same for two puzzles that may not be in different splits


def board_parser(description: str, source_repo: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output-dir", type=Path, help="folder of the data set")
    parser.add_argument("--check", action="store_true", help="refuse puzzles without exactly one solution")
    add_common_flags(parser, DEFAULT_SEED)
    add_workers_flag(parser)

    source = parser.add_argument_group("puzzles from CSV files")
    source.add_argument("--source", type=Path, help="folder with train.csv and test.csv, or one of them")
    source.add_argument("--source-repo", help=f"data set on the Hub, used without --source (default {source_repo})")
    source.add_argument("--subsample-size", type=positive, help="use that many training puzzles, chosen at random")

    generate = parser.add_argument_group("puzzles made here")
    generate.add_argument("--count", type=positive, help="number of training puzzles")
    generate.add_argument("--test-count", type=positive, help="number of test puzzles (default: a tenth, 100 to 1000)")
    return parser


def parse_board_flags(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse, and refuse flags that would have no effect."""
    args = parser.parse_args(argv)
    useless = ONLY_SOURCE if args.generate else ONLY_GENERATE
    for name in useless:
        if getattr(args, name, None) is not None:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} has no meaning {'together with' if args.generate else 'without'} --generate")
    if args.generate and args.count is None:
        parser.error("--generate needs --count, the number of training puzzles")
    return args


def boards_from_source(
    args: argparse.Namespace, source_repo: str, symbols: dict[str, int], rng: np.random.RandomState
) -> dict[str, Boards]:
    """The boards of each split; only training boards are subsampled."""
    files = csv_files(args.source, args.source_repo or source_repo)
    splits = {split: read_boards(file, symbols, getattr(args, "min_difficulty", None)) for split, file in files.items()}
    if args.subsample_size is not None and "train" in splits and args.subsample_size < len(splits["train"]):
        chosen = rng.choice(len(splits["train"]), size=args.subsample_size, replace=False)
        splits["train"] = splits["train"].take(chosen)
    sizes = {boards.questions.shape[1] for boards in splits.values()}
    if len(sizes) > 1:
        raise ValueError(f"Training and test boards differ in size ({sorted(sizes)} cells); one model needs one size.")
    return splits


def generated_boards(args: argparse.Namespace, candidate: Callable[[int], Puzzle | None]) -> dict[str, Boards]:
    num_test = args.test_count or min(1000, max(100, args.count // 10))
    return {
        split: Boards(
            np.stack([puzzle.question for puzzle in puzzles]),
            np.stack([puzzle.answer for puzzle in puzzles]),
            np.arange(1, len(puzzles) + 1),
        )
        for split, puzzles in draw_puzzles(candidate, args.count, num_test, args.num_workers).items()
    }


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_expected: int, num_workers: int
) -> Iterator[Result]:
    """`map` that continues in several processes if the first items took so long that this saves time."""
    items = iter(items)
    started = time.monotonic()
    for item in islice(items, WAVE):
        yield function(item)
    needed = (time.monotonic() - started) / WAVE * num_expected
    if num_workers == 1 or needed < POOL_PAYS_SECONDS:
        yield from map(function, items)
        return
    with Pool(num_workers) as pool:
        while wave := list(islice(items, WAVE * num_workers)):
            yield from pool.imap(function, wave, chunksize=WAVE // 8)


def draw_puzzles(
    candidate: Callable[[int], Puzzle | None], num_train: int, num_test: int, num_workers: int = 1
) -> dict[str, list[Puzzle]]:
    """Training and test puzzles among candidate(0), candidate(1), ...; no two of different splits are of one family.

    The test puzzles come first and each is of another family, so that a large training set cannot use them up.
    """
    train: list[Puzzle] = []
    test: list[Puzzle] = []
    families: set[Hashable] = set()
    keys: set[bytes] = set()
    fruitless = 0
    wanted = num_train + num_test
    with tqdm(total=wanted, desc="puzzles", unit=" puzzles") as bar:
        candidates = ordered_map(candidate, count(), wanted, num_workers)
        while len(train) + len(test) < wanted:
            puzzle = next(candidates)
            if puzzle is None or puzzle.family in families or puzzle.key in keys:
                fruitless += 1
                if fruitless == MAX_FRUITLESS_DRAWS:
                    raise ValueError(
                        f"Found {len(test)} of {num_test} test and {len(train)} of {num_train} training puzzles; then "
                        f"{fruitless} draws in a row gave no new one. Ask for fewer puzzles, or for larger or less "
                        "special ones."
                    )
                continue
            if len(test) < num_test:
                families.add(puzzle.family)
                test.append(puzzle)
            else:
                keys.add(puzzle.key)
                train.append(puzzle)
            fruitless = 0
            bar.update()
    return {"train": train, "test": test}


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

    problem = hub_problem()
    try:
        return Path(hf_hub_download(repo, file_name, repo_type="dataset", local_files_only=problem is not None))
    except (OSError, ValueError, EntryNotFoundError) as error:
        cause = problem or f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ValueError(
            f"Cannot get {file_name} of '{repo}' from the Hub ({cause}). "
            "Check the network and --source-repo; or pass --source FOLDER with train.csv and test.csv, or make puzzles "
            "with --generate."
        ) from error


def read_boards(file: Path, symbols: dict[str, int], min_rating: int | None = None) -> Boards:
    """Read a CSV file; `symbols` gives the code of each character, rows rated below `min_rating` are left out."""
    questions, answers, lines = bytearray(), bytearray(), array("q")
    num_cells = 0
    needed = {"question", "answer"} | ({"rating"} if min_rating is not None else set())
    for line, row in tqdm(_csv_rows(file, needed), desc=file.name, unit=" rows"):
        question, answer = row["question"] or "", row["answer"] or ""
        num_cells = num_cells or len(question)
        if not len(question) == len(answer) == num_cells > 0:
            raise ValueError(
                f"{file}, line {line}: question of {len(question)} and answer of {len(answer)} cells; "
                f"expected {num_cells or 'at least one'}, as in the first row."
            )
        if min_rating is not None and _rating(row["rating"], file, line) < min_rating:
            continue
        questions += question.encode("ascii", "replace")
        answers += answer.encode("ascii", "replace")
        lines.append(line)
    if not lines:
        raise ValueError(f"{file} holds no boards{'' if min_rating is None else f' rated {min_rating} or more'}.")
    places = np.array(lines)
    coded = [_coded(text, num_cells, symbols, places, file) for text in (questions, answers)]
    return Boards(coded[0], coded[1], places)


def _csv_rows(file: Path, needed: set[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line number, row by column) of a CSV file that has the needed columns."""
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        try:
            columns = reader.fieldnames or ()
            if not needed <= set(columns):
                raise ValueError(
                    f"{file} has the columns {', '.join(columns) or '(none)'}; expected {', '.join(sorted(needed))}."
                )
            for row in reader:
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{file}, after line {reader.line_num}: {error}. Expected text with a board a row; repair the file (a "
                "quotation mark that is never closed takes in all that follows) or fetch it again."
            ) from error


def _rating(text: str | None, file: Path, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise ValueError(f"{file}, line {line}: the rating {text!r} is not a whole number.") from None


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
