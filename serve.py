"""Serve a checkpoint on this machine: a page to chat in, and OpenAI-compatible answers at /v1.

python serve.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name>
"""

import argparse

from engine.run import serve_chat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="step or run folder; of several that match, the newest")
    parser.add_argument("--host", default="127.0.0.1", help="another than the loopback opens the server to others")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--compile", action="store_true", help="compile the step of a token: slow to begin, pays on CUDA"
    )
    parser.add_argument(
        "--exit", choices=["none", "kl", "margin", "head"], default="none", help="leave early when sure"
    )
    parser.add_argument("--exit-threshold", type=float, help="default: that of scripts/calibrate_exit.py")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"])
    parser.add_argument(
        "--max-new-tokens", type=int, help="unless a request asks otherwise; default: half of the window"
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="unless a request asks otherwise")
    parser.add_argument(
        "--depth", type=int, help="supervision steps unless a request asks otherwise; default: as trained"
    )
    parser.add_argument("--answers-at-once", type=int, default=4, help="further requests are told to come again")
    serve_chat(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
