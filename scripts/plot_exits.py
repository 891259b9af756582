"""Draw what the calibrated exit rules of a composition checkpoint spend by hops; prints the numbers as a table.

python scripts/calibrate_exit.py --checkpoint checkpoints/composition/<run>
python scripts/plot_exits.py checkpoints/composition/<run> --output docs/exits.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dataset.files.disk import disk_errors, new_file, write_file
from engine.entry import user_errors
from engine.generate.options import OpenOptions
from lab.drawing import require_matplotlib


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run folder or step folder")
    parser.add_argument(
        "--output", metavar="PNG", type=Path, default=Path("exits.png"), help="the numbers go beside it, as JSON"
    )
    given = parser.parse_args(arguments)
    with user_errors():
        require_matplotlib()
        from engine.build.text_checkpoint import load_model  # imports torch, which --help should not wait for
        from lab.exits import draw, measured, table

        report = measured(load_model(OpenOptions(given.checkpoint)))
        with disk_errors(given.output), new_file(given.output) as file:
            draw(report).savefig(file, format="png", dpi=150)
        write_file(given.output.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
