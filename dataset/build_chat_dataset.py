"""Build a data set of conversations from files of ShareGPT, Alpaca, OpenAssistant or OpenAI form.

    python -m dataset.build_chat_dataset --input-file chats.json --output-dir data/my-chat-dataset \\
        --format sharegpt --tokenizer gpt2 --max-length 2048 --train-split 0.95
    python -m dataset.build_chat_dataset --input-file part1.jsonl.gz part2.jsonl.zst --output-dir data/mine \\
        --tokenizer train:8000 --pack
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.chat.encode import ChatPlan, SplitReport, SplitRule, encode_conversations
from dataset.chat.formats import FORMATS, read_conversations, recognise
from dataset.chat.messages import Conversation
from dataset.chat.reader import FORMAT_VERSION, ChatFacts, folder_sha256
from dataset.chat.source import check_files, read_records
from dataset.chat.template import TEMPLATE
from dataset.chat.writer import chat_metadata, write_conversations
from dataset.files.flags import add_common_flags, add_workers_flag, positive, run_door
from dataset.files.jsonl import SPLITS
from dataset.files.writer import TOKENIZER_FOLDER, dataset_folder, write_names
from dataset.puzzles.format import BLANK_NAME
from dataset.text.token_store import SpooledDocuments
from dataset.tokenization.special_tokens import open_chat_tokenizer

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
    parser.add_argument("--max-length", type=row_length, default=2048, help="positions of a row (default %(default)s)")
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


def row_length(text: str) -> int:
    length = int(text)
    if length < MIN_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{length} is too small for a question and its answer; take {MIN_LENGTH} or more"
        )
    return length


def fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def build(args: argparse.Namespace) -> str:
    check_files(args.input_file)
    if args.format == "auto":
        args.format, _ = recognise(read_records(args.input_file))
        print(f"format: {args.format}, as the first records of {args.input_file[0]} show", file=sys.stderr)
    rule = SplitRule(args.seed, args.train_split)
    with dataset_folder(args.output_dir, args.overwrite) as folder:
        tokenizer = open_chat_tokenizer(args.tokenizer, texts=partial(training_texts, args, rule))
        tokenizer.save(folder / TOKENIZER_FOLDER)
        # A row of max_length positions takes one token more: the last one is only ever a label.
        plan = ChatPlan(folder / TOKENIZER_FOLDER, rule, args.max_length + 1, args.loss_on, args.long)
        with ExitStack() as files:
            spools = {split: files.enter_context(closing(SpooledDocuments(folder))) for split in SPLITS}
            reports = encode_into(spools, plan, args)
            check_kept(args, reports)
            for split in kept_splits(reports):
                facts = chat_facts(args, reports[split], folder_sha256(folder / TOKENIZER_FOLDER))
                metadata = chat_metadata(tokenizer.vocab_size, tokenizer.pad_id, args.max_length, facts)
                reports[split].rows = write_conversations(folder, split, spools[split], metadata)
        write_names(folder, [BLANK_NAME])
    lines = [f"{split}: {reports[split].summary()}" for split in kept_splits(reports)]
    about = f"{args.output_dir}: max_length {args.max_length}, vocab_size {tokenizer.vocab_size}"
    return "\n  ".join([about, *lines])


def conversations(args: argparse.Namespace, doing: str) -> Iterator[Conversation]:
    """All that are asked for, with a bar of the bytes that are read."""
    total = sum(path.stat().st_size for path in args.input_file)
    with tqdm(total=total, desc=doing, unit="B", unit_scale=True) as bar:
        records = read_records(args.input_file, bar.update)
        yield from islice(read_conversations(records, args.format), args.subsample_size)


def training_texts(args: argparse.Namespace, rule: SplitRule) -> Iterator[str]:
    """What a tokenizer may learn from: never what is held out, unless there is nothing else."""
    for conversation in conversations(args, "reading for the tokenizer"):
        if rule.train_split == 0 or rule.splits([conversation.number]) == ["train"]:
            yield from (turn.text for turn in conversation.turns)


def encode_into(
    spools: dict[str, SpooledDocuments], plan: ChatPlan, args: argparse.Namespace
) -> dict[str, SplitReport]:
    reports = {split: SplitReport() for split in SPLITS}
    for chunk in encode_conversations(plan, conversations(args, "encoding"), args.num_workers):
        for split, documents in chunk.documents.items():
            spools[split].extend(documents)
        for split, report in chunk.reports.items():
            reports[split].add(report)
    return reports


def kept_splits(reports: dict[str, SplitReport]) -> list[str]:
    return [split for split, report in reports.items() if report.conversations]


def check_kept(args: argparse.Namespace, reports: dict[str, SplitReport]) -> None:
    """Refuse a data set that holds nothing, or nothing to train on; say if nothing is held out."""
    train, test = (reports[split] for split in SPLITS)
    dropped = train.dropped + test.dropped
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none read"
    if not kept_splits(reports):
        raise ValueError(
            f"No conversations left: {reasons}. Give conversations with answers, or raise "
            f"--max-length={args.max_length} where they are too long."
        )
    if not train.conversations and args.train_split > 0:
        raise ValueError(
            f"No conversations left for training: {test.conversations} are held out (dropped: {reasons}). Give more "
            "conversations, a higher --train-split or another --seed."
        )
    if not test.conversations and args.train_split < 1:
        print(
            "note: no conversation is held out; a lower --train-split or another --seed changes that", file=sys.stderr
        )


def chat_facts(args: argparse.Namespace, report: SplitReport, tokenizer_sha256: str) -> ChatFacts:
    return ChatFacts(
        format_version=FORMAT_VERSION,
        template=TEMPLATE,
        tokenizer_sha256=tokenizer_sha256,
        loss_on=args.loss_on,
        is_packed=args.pack,
        documents=report.documents,
        conversations=report.conversations,
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        truncated=report.truncated,
        dropped=report.dropped.total(),
        max_document=report.longest - 1,
    )


def main(argv: list[str] | None = None) -> None:
    run_door(build, parse_flags(argv))


if __name__ == "__main__":
    main()
