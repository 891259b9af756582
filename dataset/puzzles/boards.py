"""What the Sudoku and the maze builder share: their flags, and boards from a file, the Hub or a generator."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataset.files.flags import add_common_flags, add_workers_flag, positive
from dataset.puzzles.csv_boards import Boards, csv_files, read_boards
from dataset.puzzles.generation import Puzzle, default_test_count, draw_puzzles

DEFAULT_SEED = 42
ONLY_SOURCE = ("source", "source_repo", "subsample_size", "min_difficulty")  # flags that mean nothing to a generator
ONLY_GENERATE = ("count", "test_count", "clues", "min_length")


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
    num_test = args.test_count if args.test_count is not None else default_test_count(args.count)
    train, test = draw_puzzles(candidate, args.count, num_test, args.num_workers)
    return {"train": _stacked(train), "test": _stacked(test)}


def _stacked(puzzles: list[Puzzle]) -> Boards:
    return Boards(
        np.stack([puzzle.question for puzzle in puzzles]),
        np.stack([puzzle.answer for puzzle in puzzles]),
        np.arange(1, len(puzzles) + 1),
    )
