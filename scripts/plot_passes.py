"""Draw how often every held-out set is answered rightly after each supervision step, from an evaluation to a PNG.

python scripts/plot_passes.py checkpoints/composition/chain/inference_test/metrics_step_880.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dataset.files.disk import disk_errors, new_file
from engine.entry import user_errors
from lab.drawing import require_matplotlib
from lab.plot_passes import draw, read_evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="metrics_step_<N>.json of inference_instruct.py")
    parser.add_argument("--output", metavar="PNG", type=Path, help="default: FILE with .png")
    given = parser.parse_args(arguments)
    output = given.output or given.file.with_suffix(".png")
    with user_errors():
        require_matplotlib()
        figure = draw(read_evaluation(given.file))
        with disk_errors(output), new_file(output) as file:
            figure.savefig(file, format="png")
    print(output)


if __name__ == "__main__":
    main()
