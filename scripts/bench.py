"""Measure this machine on this project's work; prints one JSON object.

    python scripts/bench.py train arch=trm arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=0 --positions 81 --rows 64
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.run import bench_train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="a supervision step beside bare matrix products; takes Hydra overrides")
    train.add_argument("--positions", type=int, default=81, help="positions of a row, puzzle prefix included")
    train.add_argument("--rows", type=int, default=64, help="rows of a batch")
    train.add_argument("--vocab-size", type=int, default=11)
    train.add_argument("--steps", type=int, default=4, help="steps to time; the fastest counts")
    args, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-") or "=" not in word]
    if strange:
        parser.error(f"unknown: {' '.join(strange)}; expected the flags above and Hydra overrides such as arch=trm")
    overrides.append(f"global_batch_size={args.rows}")
    print(json.dumps(bench_train(overrides, positions=args.positions, vocab_size=args.vocab_size, steps=args.steps)))


if __name__ == "__main__":
    main()
