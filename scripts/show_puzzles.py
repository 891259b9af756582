"""Draw how a checkpoint solves a few test puzzles: its answer after every supervision step.

python scripts/show_puzzles.py --checkpoint checkpoints/sudoku-6x6/<run_name>
python scripts/show_puzzles.py --checkpoint checkpoints/sudoku-6x6/<run_name> --count 8 --output solving.gif
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.files.flags import positive, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="step folder, run folder, or weights of the reference")
    parser.add_argument("--data-path", help="data set to draw from (default: the one it was trained on)")
    parser.add_argument("--count", type=positive, default=4, help="how many puzzles (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="which puzzles (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("puzzles.png"), help=".png, or .gif to animate (default %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    given = parser.parse_args()

    # Late, so that --help needs nothing but the flags.
    from engine.entry import user_errors
    from lab.puzzle_pictures.show_puzzles import show_puzzles

    with user_errors():
        show_puzzles(**vars(given))


if __name__ == "__main__":
    main()
