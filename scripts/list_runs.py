"""List the runs below a directory: what each is, how far it is, its best number, its commit and its age.

python scripts/list_runs.py
python scripts/list_runs.py checkpoints/SlimOrca-ACT
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.entry import user_errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", metavar="DIR", type=Path, nargs="?", default=Path("checkpoints"))
    given = parser.parse_args(arguments)
    with user_errors():
        from lab.runs import list_runs, table  # imports torch, which --help should not wait for

        rows = list_runs(given.root)
        if not rows:
            raise ValueError(f"No run below {given.root}: no directory there holds a config.yaml. Name another one.")
        print(table(rows))


if __name__ == "__main__":
    main()
