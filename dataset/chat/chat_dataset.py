"""Builds a data set of conversations: a tokenizer, documents encoded in processes, rows, and what is held out."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from dataset.chat.formats import read_conversations, recognise
from dataset.chat.reader import FORMAT_VERSION, ChatFacts, ChatMetadata, folder_sha256
from dataset.chat.records import Conversation, check_files, read_records
from dataset.chat.template import TEMPLATE, ChatEncoder
from dataset.chat.writer import write_conversations
from dataset.common import IGNORE_LABEL_ID, text_metadata
from dataset.files.jsonl import SPLITS, hash_fraction
from dataset.files.writer import BOARD_SET, TOKENIZER_FOLDER, dataset_folder, write_names
from dataset.puzzles.format import BLANK_NAME
from dataset.text.conversation import EncodedConversation, what_is_missing
from dataset.text.encoded import ChunkBuilder, EncodedChunk, SplitReport, described
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.text.token_store import SpooledDocuments
from dataset.tokenization.special_tokens import ChatTokenizer, load_chat_tokenizer, open_chat_tokenizer

CHUNK_CHARACTERS = 1 << 19  # bounds what waits for the processes
CONVERSATION_CHARACTERS = 1 << 10  # what a conversation counts beside its text
ALONE_CHUNKS = 8  # a smaller corpus is encoded before processes have started


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
    lines = []
    with dataset_folder(options.output_dir, options.overwrite) as folder:
        tokenizer = open_chat_tokenizer(options.tokenizer, texts=partial(training_texts, options))
        tokenizer.save(folder / TOKENIZER_FOLDER)
        with ExitStack() as files:
            spools = {split: files.enter_context(closing(SpooledDocuments(folder))) for split in SPLITS}
            reports = encode_into(spools, folder / TOKENIZER_FOLDER, options)
            check_kept(options, reports)
            for split, report in reports.items():
                if report.conversations:
                    metadata = chat_metadata(options, tokenizer, folder_sha256(folder / TOKENIZER_FOLDER), report)
                    rows = write_conversations(folder, split, spools[split], metadata)
                    lines.append(f"{split}: {summary(report, rows)}")
        write_names(folder, [BLANK_NAME])
    about = f"{options.output_dir}: max_length {options.max_length}, vocab_size {tokenizer.vocab_size}"
    return "\n  ".join([about, *lines])


def conversations(options: ChatBuildOptions, doing: str) -> Iterator[Conversation]:
    """All that are asked for, with a bar of the bytes that are read."""
    total = sum(path.stat().st_size for path in options.input_file)
    with tqdm(total=total, desc=doing, unit="B", unit_scale=True) as bar:
        records = read_records(options.input_file, bar.update)
        yield from islice(read_conversations(records, options.format), options.subsample_size)


def splits_of(numbers: list[int], options: ChatBuildOptions) -> list[str]:
    """The split of each record by a hash of (seed, number), whatever else is read."""
    is_test = hash_fraction(options.seed, np.array(numbers, dtype=np.int64)) < 1 - options.train_split
    return ["test" if test else "train" for test in is_test.tolist()]


def training_texts(options: ChatBuildOptions) -> Iterator[str]:
    """What a tokenizer may learn from: never what is held out, unless there is nothing else."""
    for conversation in conversations(options, "reading for the tokenizer"):
        if options.train_split == 0 or splits_of([conversation.number], options) == ["train"]:
            yield from (turn.text for turn in conversation.turns)


class ChunkEncoder:
    """From conversations to documents of one split or the other."""

    def __init__(self, options: ChatBuildOptions, tokenizer_folder: Path) -> None:
        self._options = options
        # A row of max_length positions takes one token more: the last one is only ever a label.
        self._encoder = ChatEncoder(
            load_chat_tokenizer(tokenizer_folder), options.max_length + 1, loss_on=options.loss_on, long=options.long
        )

    def __call__(self, conversations: list[Conversation]) -> EncodedChunk:
        chunk = ChunkBuilder()
        splits = splits_of([conversation.number for conversation in conversations], self._options)
        for conversation, split in zip(conversations, splits, strict=True):
            turns = conversation.turns
            if reason := what_is_missing(turns, needs_answer=self._options.loss_on == "assistant"):
                chunk.drop(split, reason)
                continue
            encoded, lost = self._encoder.encode_counted(turns)
            chunk.reports[split].lost_tokens += lost
            pieces = [piece for whole in encoded if (piece := _learnable(whole)) is not None]
            if pieces:
                chunk.keep(split, pieces)
            else:
                chunk.drop(split, "too long" if self._options.long == "drop" else "without room for their answer")
        return chunk.build()


def encode_into(
    spools: dict[str, SpooledDocuments], tokenizer_folder: Path, options: ChatBuildOptions
) -> dict[str, SplitReport]:
    """Encode chunk after chunk, in order; the result is the same with any number of processes."""
    reports = {split: SplitReport() for split in SPLITS}
    with EncoderPool(partial(ChunkEncoder, options, tokenizer_folder), options.num_workers, ALONE_CHUNKS) as pool:
        for chunk in pool.encode(chunked(conversations(options, "encoding"), _size, CHUNK_CHARACTERS)):
            for split, documents in chunk.documents.items():
                spools[split].extend(documents)
            for split, report in chunk.reports.items():
                reports[split].add(report)
    return reports


def _size(conversation: Conversation) -> int:
    return CONVERSATION_CHARACTERS + sum(len(turn.text) for turn in conversation.turns)


def _learnable(encoded: EncodedConversation) -> EncodedConversation | None:
    """Up to the last token that has a place in a row and is trained there; None if there is none."""
    trained = np.flatnonzero(encoded.is_trained[1:])
    if not len(trained):
        return None
    used = int(trained[-1]) + 2
    is_trained = encoded.is_trained[:used].copy()
    is_trained[0] = False  # the first token is an input only
    return EncodedConversation(encoded.ids[:used], is_trained, encoded.is_truncated)


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
    if not train.conversations and not test.conversations:
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


def chat_metadata(
    options: ChatBuildOptions, tokenizer: ChatTokenizer, tokenizer_sha256: str, report: SplitReport
) -> ChatMetadata:
    """Every row is a puzzle and a group of its own, without an identifier; `write_conversations` counts them."""
    facts = ChatFacts(
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
    plain = text_metadata(options.max_length, tokenizer.vocab_size, tokenizer.pad_id).model_dump()
    stored = {"ignore_label_id": IGNORE_LABEL_ID, "total_groups": 0, "total_puzzles": 0, "sets": [BOARD_SET]}
    return ChatMetadata(**plain | stored, chat=facts)
