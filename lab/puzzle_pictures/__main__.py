"""Table of how many held-out puzzles a checkpoint solves with 1, 2, 4, ... tries, by each way of choosing, and what it costs.

python -m lab.puzzle_pictures --checkpoint checkpoints/sudoku-6x6/<run_name>
python -m lab.puzzle_pictures --checkpoint checkpoints/sudoku-6x6/<run_name> --tries 32 --count 200 --output tries.png
"""

import argparse
import math
from pathlib import Path

from dataset.files.disk import disk_errors, new_file
from dataset.files.flags import positive, seed


def scale(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m lab.puzzle_pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="step folder, run folder, or weights of the reference")
    parser.add_argument(
        "--data-path", help="data set whose test puzzles are tried (default: the one it was trained on)"
    )
    parser.add_argument("--count", type=positive, help="how many puzzles (default: all)")
    parser.add_argument("--seed", type=seed, default=0, help="which puzzles (default %(default)s)")
    parser.add_argument("--tries", type=positive, default=16, help="at most, in powers of two (default %(default)s)")
    parser.add_argument(
        "--noise",
        type=scale,
        default=0.3,
        help="scale of the noise of tries that differ by it; 0: none do (default 0.3)",
    )
    parser.add_argument("--output", metavar="PNG", type=Path, help="also a picture")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    given = parser.parse_args()

    # Late, so that --help needs nothing but the flags.
    from engine.build.puzzle_checkpoint import load_puzzle_model
    from engine.checkpoints.load import load_checkpoint
    from engine.entry import user_errors
    from lab.drawing import require_matplotlib
    from lab.puzzle_pictures.tries import draw, puzzles_of, table, tried

    with user_errors():
        if given.output is not None:
            require_matplotlib()
        model = load_puzzle_model(load_checkpoint(given.checkpoint), given.device)
        folder, samples = puzzles_of(model, given.data_path, given.count, given.seed)
        found = tried(model, samples, given.tries, given.noise)
        puzzles, title = len(samples), f"{len(samples)} held-out puzzles of {Path(folder).name}, {model.path.name}"
        if given.output is not None:
            with disk_errors(given.output), new_file(given.output) as file:
                draw(found, puzzles, title).savefig(file, format="png", dpi=150)
        print(f"{title}, noise {given.noise:g}\n\n{table(found, puzzles)}")


if __name__ == "__main__":
    main()
