"""Answer a message, or many, with a checkpoint of instruction training; the reply alone goes to standard output.

python generate_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run> --message "Explain recursion in simple terms."
python generate_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run> --message-file questions.txt --json
"""

import argparse

from engine.run import generate_instruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="step folder, run folder (its best, else its latest step) or file")
    parser.add_argument("--project-name", default="SlimOrca-ACT", help="with --run-name, instead of --checkpoint")
    parser.add_argument("--run-name")
    parser.add_argument("-m", "--message", help="the text to answer")
    parser.add_argument("--message-file", help="many texts, one a line; - is standard input")
    parser.add_argument(
        "--system-message", help="what the model is told before; default: a system prompt of SlimOrca, '' for none"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="messages answered at once")
    parser.add_argument("--tokenizer-path", help="another tokenizer than the checkpoint's own")
    parser.add_argument("--config-name", default="cfg_pretrain_instruct", help="for a checkpoint without a config")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value changes of the config")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"])
    parser.add_argument("--max-output-tokens", type=int, help="default: half of seq_len")
    parser.add_argument(
        "--stop", action="append", default=[], help="text or special token that ends a reply; repeatable"
    )
    parser.add_argument("--truncate", action="store_true", help="shorten a message that does not fit the window")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
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
    parser.add_argument(
        "--mode", choices=["exact", "last_step", "recompute"], default="exact", help="what is remembered"
    )
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True, help="print while it is said")
    parser.add_argument("--json", action="store_true", help="one JSON object a message")
    parser.add_argument("-V", "--verbose", action="store_true", help="every token's alternatives, to standard error")
    generate_instruct(vars(parser.parse_args()))


if __name__ == "__main__":
    main()
