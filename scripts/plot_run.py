"""Draw the curves of one run, or of several over each other, from their metrics.jsonl to a PNG.

python scripts/plot_run.py checkpoints/sudoku/first
python scripts/plot_run.py checkpoints/sudoku/first checkpoints/sudoku/second --output both.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dataset.files.disk import disk_errors, new_file
from engine.entry import user_errors
from lab.drawing import require_matplotlib
from lab.plot_run import COLORS, draw, read_run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", type=Path, nargs="+", help="folder that holds metrics.jsonl")
    parser.add_argument(
        "--output", metavar="PNG", type=Path, help="default: RUN_DIR/plot.png; of several the first's comparison.png"
    )
    given = parser.parse_args(arguments)
    if len(given.run_dirs) > len(COLORS):
        parser.error(f"{len(given.run_dirs)} runs are too many for one picture; give at most {len(COLORS)}")
    output = given.output or given.run_dirs[0] / ("plot.png" if len(given.run_dirs) == 1 else "comparison.png")
    with user_errors():
        require_matplotlib()
        figure = draw([read_run(run_dir) for run_dir in given.run_dirs])
        with disk_errors(output), new_file(output) as file:
            figure.savefig(file, format="png")
    print(output)


if __name__ == "__main__":
    main()
