"""Build a data set of square mazes: from CSV files, from the Hub, or with mazes made here.

python -m dataset.build_maze_dataset
python -m dataset.build_maze_dataset --generate 11 --count 1000
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.files.flags import positive, user_errors
from dataset.files.writer import dataset_folder, write_boards
from dataset.puzzles.boards import board_parser, boards_from_source, check_boards, generated_boards, parse_board_flags
from dataset.puzzles.maze import SYMBOLS, VOCAB_SIZE, maze_candidate, maze_problem, side_of, transformed

SOURCE_REPO = "sapientinc/maze-30x30-hard-1k"
SMALLEST = 5


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = board_parser("Build a data set of square mazes.", SOURCE_REPO)
    parser.add_argument("--aug", action="store_true", help="all rotations and reflections of each training maze")
    parser.add_argument("--generate", type=positive, metavar="SIZE", help="make mazes of SIZE x SIZE cells")
    parser.add_argument("--min-length", type=positive, help="moves from S to G in a made maze (default SIZE)")
    args = parse_board_flags(parser, argv)
    if args.generate is not None and args.generate < SMALLEST:
        parser.error(f"--generate {args.generate}: a maze has at least {SMALLEST} x {SMALLEST} cells")
    return args


def build_mazes(args: argparse.Namespace) -> str:
    if args.generate:
        splits = generated_boards(
            args, partial(maze_candidate, args.generate, args.min_length or args.generate, args.seed)
        )
        output_dir = args.output_dir or Path(f"data/maze-{args.generate}x{args.generate}")
    else:
        splits = boards_from_source(args, SOURCE_REPO, SYMBOLS, np.random.RandomState(args.seed))
        output_dir = args.output_dir or Path("data/maze-30x30-hard-1k")

    side = side_of(next(iter(splits.values())).questions.shape[1])
    if args.check:
        for split, boards in splits.items():
            check_boards(boards, maze_problem, split, args.num_workers)

    with dataset_folder(output_dir, args.overwrite) as folder:
        for split, boards in splits.items():
            copies = 8 if args.aug and split == "train" else 1
            inputs, labels = (transformed(array, side, copies) for array in (boards.questions, boards.answers))
            write_boards(folder, split, inputs, labels, VOCAB_SIZE, group_size=copies)
    sizes = ", ".join(f"{len(boards)} {split} mazes" for split, boards in splits.items())
    augmented = " in all 8 orientations for training" if args.aug else ""
    return f"{output_dir}: {sizes}{augmented}; seq_len {side * side}, vocab_size {VOCAB_SIZE}"


def main(argv: list[str] | None = None) -> None:
    options = parse_flags(argv)
    with user_errors():
        print(build_mazes(options))


if __name__ == "__main__":
    main()
