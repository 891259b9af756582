"""Talk to a chat model in the terminal, or get a single answer; the answer alone goes to standard output.

python generate.py --checkpoint "checkpoints/Chat-dataset-ACT-torch/trm_chat-*/step_1000" --prompt "What is recursion?"
python generate.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name> --interactive
"""

import argparse

from engine.run import generate_chat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="step or run folder; of several that match, the newest")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one message to answer")
    what.add_argument("--interactive", action="store_true", help="a conversation")
    parser.add_argument("--system", help="what the model is told before")
    parser.add_argument("--max-new-tokens", type=int, help="default: half of the window")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, help="supervision steps of every token; default: as trained")
    parser.add_argument(
        "--compile", action="store_true", help="compile the step of a token: slow to begin, pays on CUDA"
    )
    parser.add_argument(
        "--exit", choices=["none", "kl", "margin", "head"], default="none", help="leave early when sure"
    )
    parser.add_argument("--exit-threshold", type=float, help="default: that of scripts/calibrate_exit.py")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"])
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True, help="print while it is said")
    generate_chat(vars(parser.parse_args()))


if __name__ == "__main__":
    main()
