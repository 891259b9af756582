"""Build a Sudoku data set: from CSV files, from the Hub, or with puzzles made here.

python -m dataset.build_sudoku_dataset --subsample-size 1000 --num-aug 1000
python -m dataset.build_sudoku_dataset --generate 4x4 --count 1000
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.files.flags import not_negative, positive, user_errors
from dataset.files.writer import dataset_folder
from dataset.puzzles.boards import board_parser, boards_from_source, check_boards, generated_boards, parse_board_flags
from dataset.puzzles.sudoku import (
    SHAPES,
    SYMBOLS,
    check_digits,
    shape_of,
    sudoku_candidate,
    sudoku_problem,
    write_sudokus,
)

SOURCE_REPO = "sapientinc/sudoku-extreme"
DEFAULT_CLUES = {"4x4": (4, 9), "6x6": (10, 18), "9x9": (24, 36)}


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = board_parser("Build a Sudoku data set.", SOURCE_REPO)
    parser.add_argument("--num-aug", type=not_negative, default=0, help="scrambled copies of each training puzzle")
    parser.add_argument("--min-difficulty", type=int, help="leave out CSV rows with a lower rating")
    parser.add_argument("--generate", choices=SHAPES, help="make puzzles with one solution, of that size")
    parser.add_argument(
        "--clues", type=positive, nargs=2, metavar=("LOW", "HIGH"), help="how many cells of a made puzzle are given"
    )
    return parse_board_flags(parser, argv)


def build_sudokus(args: argparse.Namespace) -> str:
    rng = np.random.RandomState(args.seed)  # the reference's generator, and its order of draws
    if args.generate:
        clues = tuple(args.clues or DEFAULT_CLUES[args.generate])
        splits = generated_boards(args, partial(sudoku_candidate, args.generate, clues, args.seed))
        output_dir = args.output_dir or Path(f"data/sudoku-{args.generate}")
    else:
        splits = boards_from_source(args, SOURCE_REPO, SYMBOLS, rng)
        output_dir = args.output_dir or Path("data/sudoku-extreme-full")

    shape = shape_of(next(iter(splits.values())).questions.shape[1])
    for split, boards in splits.items():
        check_digits(boards, shape, split)
        if args.check:
            check_boards(boards, partial(sudoku_problem, shape), split, args.num_workers)

    with dataset_folder(output_dir, args.overwrite) as folder:
        for split, boards in splits.items():
            write_sudokus(folder, split, boards, shape, args.num_aug if split == "train" else 0, rng)
    sizes = ", ".join(f"{len(boards)} {split} puzzles" for split, boards in splits.items())
    copies = f" with {args.num_aug} copies of each training puzzle" if args.num_aug else ""
    return f"{output_dir}: {sizes}{copies}; seq_len {shape.num_cells}, vocab_size {shape.vocab_size}"


def main(argv: list[str] | None = None) -> None:
    options = parse_flags(argv)
    with user_errors():
        print(build_sudokus(options))


if __name__ == "__main__":
    main()
