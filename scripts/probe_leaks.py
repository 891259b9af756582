"""Look for leaks in a text model and in the batches it learns from; exit code 1 if there is one.

python scripts/probe_leaks.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>
python scripts/probe_leaks.py arch=trm_text arch.halt_max_steps=4
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="step folder, run folder or file; default: a fresh model of the overrides")
    parser.add_argument(
        "--train-steps", type=int, default=200, help="of a small model on shuffled answers; 0 leaves that probe out"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config, as in training")
    args = parser.parse_intermixed_args()

    # Late, so that --help needs nothing but the flags.
    from lab.probes import report

    sys.exit(report(**vars(args)))


if __name__ == "__main__":
    main()
