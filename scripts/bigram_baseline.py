"""Compare a checkpoint's held-out loss with that of bigrams counted on the very tokens that it was trained on.

python scripts/bigram_baseline.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes to its config")
    args = parser.parse_args()

    # Late, so that --help needs nothing but the flags.
    from engine.entry import user_errors
    from lab.ngram import compare_with_bigram

    with user_errors():
        compare_with_bigram(args.checkpoint, args.overrides)


if __name__ == "__main__":
    main()
