"""Compare a checkpoint's held-out loss with that of bigrams counted on the very tokens that it was trained on.

python scripts/bigram_baseline.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.run import bigram_baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes to its config")
    bigram_baseline(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
