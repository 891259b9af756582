"""Train variants of text recursion for equal compute on the sample corpus, and write docs/text_recursion.md.

python scripts/study_text.py --seeds 3 --tflop 20
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", help="names from the table; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tflop", type=float, default=20.0, help="compute of each run, in 10^12 operations")
    parser.add_argument("--overrides", nargs="*", default=[], help="Hydra overrides for all variants")
    parser.add_argument(
        "--results", type=Path, default=Path("checkpoints/study/results.jsonl"), help="what has been trained"
    )
    parser.add_argument("--page", type=Path, default=Path("docs/text_recursion.md"))
    args = parser.parse_args()

    # Late, so that --help needs nothing but the flags.
    from engine.entry import user_errors
    from lab.study import study

    with user_errors():
        study(**vars(args))


if __name__ == "__main__":
    main()
