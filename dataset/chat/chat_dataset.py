"""Builds a data set of conversations: a tokenizer, encoded rows, and what is held out."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from dataset.chat.encode import ChatPlan, SplitRule, encode_conversations
from dataset.chat.formats import read_conversations, recognise
from dataset.chat.reader import FORMAT_VERSION, ChatFacts, folder_sha256
from dataset.chat.records import Conversation, check_files, read_records
from dataset.chat.template import TEMPLATE
from dataset.chat.writer import chat_metadata, write_conversations
from dataset.files.jsonl import SPLITS
from dataset.files.writer import TOKENIZER_FOLDER, dataset_folder, write_names
from dataset.puzzles.format import BLANK_NAME
from dataset.text.encoded import SplitReport, described
from dataset.text.token_store import SpooledDocuments
from dataset.tokenization.special_tokens import open_chat_tokenizer


@dataclass(frozen=True)
class ChatBuildOptions:
    """What `dataset/build_chat_dataset.py` is asked for."""

    input_file: list[Path]
    output_dir: Path
    format: str
    tokenizer: str
    max_length: int
    train_split: float
    subsample_size: int | None
    loss_on: Literal["assistant", "all"]
    pack: bool
    long: Literal["truncate", "split", "drop"]
    overwrite: bool
    seed: int
    num_workers: int


def build_chat(options: ChatBuildOptions) -> str:
    """Write the data set; returns what to say of it."""
    check_files(options.input_file)
    if options.format == "auto":
        found, _ = recognise(read_records(options.input_file))
        options = replace(options, format=found)
        print(f"format: {options.format}, as the first records of {options.input_file[0]} show", file=sys.stderr)
    rule = SplitRule(options.seed, options.train_split)
    lines = []
    with dataset_folder(options.output_dir, options.overwrite) as folder:
        tokenizer = open_chat_tokenizer(options.tokenizer, texts=partial(training_texts, options, rule))
        tokenizer.save(folder / TOKENIZER_FOLDER)
        # A row of max_length positions takes one token more: the last one is only ever a label.
        plan = ChatPlan(folder / TOKENIZER_FOLDER, rule, options.max_length + 1, options.loss_on, options.long)
        with ExitStack() as files:
            spools = {split: files.enter_context(closing(SpooledDocuments(folder))) for split in SPLITS}
            reports = encode_into(spools, plan, options)
            check_kept(options, reports)
            for split in kept_splits(reports):
                facts = chat_facts(options, reports[split], folder_sha256(folder / TOKENIZER_FOLDER))
                metadata = chat_metadata(tokenizer.vocab_size, tokenizer.pad_id, options.max_length, facts)
                rows = write_conversations(folder, split, spools[split], metadata)
                lines.append(f"{split}: {summary(reports[split], rows)}")
        write_names(folder, [BLANK_NAME])
    about = f"{options.output_dir}: max_length {options.max_length}, vocab_size {tokenizer.vocab_size}"
    return "\n  ".join([about, *lines])


def conversations(options: ChatBuildOptions, doing: str) -> Iterator[Conversation]:
    """All that are asked for, with a bar of the bytes that are read."""
    total = sum(path.stat().st_size for path in options.input_file)
    with tqdm(total=total, desc=doing, unit="B", unit_scale=True) as bar:
        records = read_records(options.input_file, bar.update)
        yield from islice(read_conversations(records, options.format), options.subsample_size)


def training_texts(options: ChatBuildOptions, rule: SplitRule) -> Iterator[str]:
    """What a tokenizer may learn from: never what is held out, unless there is nothing else."""
    for conversation in conversations(options, "reading for the tokenizer"):
        if rule.train_split == 0 or rule.splits([conversation.number]) == ["train"]:
            yield from (turn.text for turn in conversation.turns)


def encode_into(
    spools: dict[str, SpooledDocuments], plan: ChatPlan, options: ChatBuildOptions
) -> dict[str, SplitReport]:
    reports = {split: SplitReport() for split in SPLITS}
    for chunk in encode_conversations(plan, conversations(options, "encoding"), options.num_workers):
        for split, documents in chunk.documents.items():
            spools[split].extend(documents)
        for split, report in chunk.reports.items():
            reports[split].add(report)
    return reports


def kept_splits(reports: dict[str, SplitReport]) -> list[str]:
    return [split for split, report in reports.items() if report.conversations]


def summary(report: SplitReport, rows: int) -> str:
    return (
        f"{report.conversations} conversations in {rows} rows, {report.tokens} tokens, {report.trained_tokens} of them "
        f"supervised; {report.truncated} truncated, {report.divided} split, {report.lost_tokens} supervised tokens lost; "
        f"longest {report.longest} tokens; dropped: {described(report.dropped)}"
    )


def check_kept(options: ChatBuildOptions, reports: dict[str, SplitReport]) -> None:
    """Refuse a data set that holds nothing, or nothing to train on; say if nothing is held out."""
    train, test = (reports[split] for split in SPLITS)
    dropped = train.dropped + test.dropped
    reasons = described(dropped) if dropped else "none read"
    if not kept_splits(reports):
        raise ValueError(
            f"No conversations left: {reasons}. Give conversations with answers, or raise "
            f"--max-length={options.max_length} where they are too long."
        )
    if not train.conversations and options.train_split > 0:
        raise ValueError(
            f"No conversations left for training: {test.conversations} are held out (dropped: {reasons}). Give more "
            "conversations, a higher --train-split or another --seed."
        )
    if not test.conversations and options.train_split < 1:
        print(
            "note: no conversation is held out; a lower --train-split or another --seed changes that", file=sys.stderr
        )


def chat_facts(options: ChatBuildOptions, report: SplitReport, tokenizer_sha256: str) -> ChatFacts:
    return ChatFacts(
        format_version=FORMAT_VERSION,
        template=TEMPLATE,
        tokenizer_sha256=tokenizer_sha256,
        loss_on=options.loss_on,
        is_packed=options.pack,
        documents=report.documents,
        conversations=report.conversations,
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        truncated=report.truncated,
        dropped=report.dropped.total(),
        max_document=report.longest - 1,
    )
