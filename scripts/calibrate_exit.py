"""Find how early tokens may leave the recursion without losing more than asked, and store it with the checkpoint.

python scripts/calibrate_exit.py --checkpoint checkpoints/SlimOrca-ACT/<run> --max-loss-increase 0.01
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.run import calibrate_exit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="run folder or step folder")
    parser.add_argument("--max-loss-increase", type=float, default=0.01, help="in nats a token, on held-out data")
    parser.add_argument("--conversations", type=int, default=256, help="to fit on, and as many to judge on")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value changes of the checkpoint's config")
    calibrate_exit(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
