"""Measure this machine on this project's work; prints one JSON object.

python scripts/bench.py train arch=trm arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=0 --positions 81 --rows 64
python scripts/bench.py train arch=trm_text --positions 512 --rows 48 --vocab-size 32000 --compare
python scripts/bench.py generate arch=trm_text --prompt 256 --new-tokens 64 --depth 4 --batch 1 8
python scripts/bench.py distill --hidden-size 256 --layers 4 --vocab-size 32000 --rows 4 --positions 512 --topk 64
python scripts/bench.py load dataset.data_dir=data/slimorca_full dataset.subset_size=null
python scripts/bench.py gpu --output checkpoints/gpu
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True)
    train = subparsers.add_parser("train", help="training steps beside bare matrix products; takes Hydra overrides")
    train.add_argument("--positions", type=int, default=81, help="positions of a row, puzzle prefix included")
    train.add_argument("--rows", type=int, default=64, help="rows of a batch")
    train.add_argument("--vocab-size", type=int, default=11)
    train.add_argument("--steps", type=int, default=4, help="steps to time; the fastest counts")
    train.add_argument("--depth", type=int, default=1, help="text: supervision steps of an optimizer step")
    train.add_argument("--compare", action="store_true", help="text: also without packing and chunked head")
    train.add_argument("--profile", type=Path, help="write a Chrome trace of a step here (.json.gz); name its kernels")
    generate = subparsers.add_parser(
        "generate", help="tokens per second with and without caches; takes Hydra overrides"
    )
    generate.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    generate.add_argument("--new-tokens", type=int, default=64)
    generate.add_argument("--depth", type=int, default=4, help="supervision steps of a token")
    generate.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="prompts answered at once")
    generate.add_argument("--vocab-size", type=int, default=32_000)
    subparsers.add_parser("load", help="reading and tokenizing a corpus; takes Hydra overrides")
    distill = subparsers.add_parser("distill", help="the parts of a distillation step, and a student's decoding")
    distill.add_argument("--hidden-size", type=int, default=256, help="of teacher and student")
    distill.add_argument("--layers", type=int, default=4, help="of teacher and student")
    distill.add_argument("--vocab-size", type=int, default=32_000)
    distill.add_argument("--rows", type=int, default=4, help="rows of a batch")
    distill.add_argument("--positions", type=int, default=512, help="positions of a row")
    distill.add_argument("--topk", type=int, default=64, help="ids of a position that the teacher gives")
    distill.add_argument("--steps", type=int, default=3, help="steps to time; medians count")
    distill.add_argument("--device", default="auto")
    gpu = subparsers.add_parser("gpu", help="all of it, in parts, beside the tests that need a GPU; see make gpu")
    gpu.add_argument("--output", default="checkpoints/gpu", help="folder of results; what it holds is not run again")
    gpu.add_argument("--seconds", type=float, default=540.0, help="of this call; the next one goes on")
    gpu.add_argument("--only", nargs="*", default=[], help="names of parts")
    gpu.add_argument("--small", action="store_true", help="toy sizes: tries the command itself, on any device")
    gpu.add_argument("--device", default="auto")
    args, overrides = parser.parse_known_args()
    takes_overrides = args.command not in ("distill", "gpu")
    strange = [word for word in overrides if not takes_overrides or word.startswith("-") or "=" not in word]
    if strange:
        also = " and Hydra overrides such as arch=trm" if takes_overrides else ""
        parser.error(f"unknown: {' '.join(strange)}; expected the flags above{also}")

    # Late, so that --help needs nothing but the flags.
    from engine.entry import user_errors
    from lab.bench import commands

    measure = getattr(commands, args.command)
    with user_errors():
        print(json.dumps(measure(args, overrides)))


if __name__ == "__main__":
    main()
