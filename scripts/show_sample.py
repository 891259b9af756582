"""Print conversations of a data set as a model gets them, with the tokens that it learns to say in colour.

python scripts/show_sample.py data/my-chat-dataset --count 3
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.files.flags import positive, seed, user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of the data set")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--count", type=positive, default=3, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the draw (default %(default)s)")
    parser.add_argument("--color", action="store_true", help="in colour even where the output is not a terminal")
    args = parser.parse_args()

    # Late, so that --help needs nothing but the flags.
    from dataset.chat.samples import show_samples

    with user_errors():
        print(show_samples(args.path, args.split, args.count, args.seed, args.color or sys.stdout.isatty()))


if __name__ == "__main__":
    main()
