"""Build a data set of conversations from files of ShareGPT, Alpaca, OpenAssistant or OpenAI form.

    python -m dataset.build_chat_dataset --input-file chats.json --output-dir data/my-chat-dataset \\
        --format sharegpt --tokenizer gpt2 --max-length 2048 --train-split 0.95
    python -m dataset.build_chat_dataset --input-file part1.jsonl.gz part2.jsonl.zst --output-dir data/mine \\
        --tokenizer train:8000 --pack
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.chat.formats import FORMATS
from dataset.files.flags import add_common_flags, add_workers_flag, at_least, positive, user_errors

MIN_LENGTH = 8  # what a question and an answer of one token each take with all that marks them


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build a data set of conversations.")
    parser.add_argument("--input-file", type=Path, nargs="+", required=True, help="JSON or JSON Lines, also .gz, .zst")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="of the input (default: what the records show)"
    )
    parser.add_argument(
        "--tokenizer",
        default="gpt2",
        help="a name on the Hub, a folder or file, or train:SIZE, trained on the input (default %(default)s)",
    )
    parser.add_argument(
        "--max-length", type=at_least(MIN_LENGTH), default=2048, help="positions of a row (default %(default)s)"
    )
    parser.add_argument(
        "--train-split", type=fraction, default=0.95, help="share of the records for training (default %(default)s)"
    )
    parser.add_argument("--subsample-size", type=positive, help="use only that many conversations, the first ones")
    parser.add_argument(
        "--loss-on",
        choices=("assistant", "all"),
        default="assistant",
        help="what the model learns to say: answers, or every turn (default %(default)s)",
    )
    parser.add_argument("--pack", action="store_true", help="let several conversations share a row")
    parser.add_argument(
        "--long",
        choices=("truncate", "split", "drop"),
        default="truncate",
        help="what becomes of a conversation that is longer than a row (default %(default)s)",
    )
    add_common_flags(parser, default_seed=42)
    add_workers_flag(parser)
    return parser.parse_args(argv)


def fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)

    # Late, so that --help needs nothing but the flags.
    from dataset.chat.chat_dataset import ChatBuildOptions, build_chat

    with user_errors():
        print(build_chat(ChatBuildOptions(**vars(args))))


if __name__ == "__main__":
    main()
