"""SlimOrca and files of its kind: finds or downloads the corpus, splits it, and tokenizes it in memory."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset.files.download import HubFile, find_hub_file
from dataset.files.json_stream import parse_line
from dataset.files.jsonl import SPLITS, UNUSED, assign_splits, numbered_lines, read_blocks
from dataset.text.composition import CompositionOptions, make_composition_records, whole_pieces
from dataset.text.conversation import Turn, parse_record, what_is_missing
from dataset.text.encoded import ChunkBuilder, EncodedChunk, LoadReport, SplitReport
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.text.sample_corpus import Record, make_sample_records, sample_tokenizer
from dataset.text.template import ConversationEncoder
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import Tokenizer

HUB_REPO = "Open-Orca/SlimOrca"
HUB_NAME = "oo-labeled_correct.gpt4.sharegpt.jsonl"  # what a copy of the repository calls the file
LOCAL_NAMES = ("SlimOrca.jsonl", "SlimOrca.jsonl.zst", HUB_NAME)
CHUNK_LINES = 1024
DIGEST_BYTES = 1 << 20  # less than the first step of a download
BUILT_IN = {"sample": "built-in sample corpus", "composition": "made-up facts"}
POOL_PAYS_LINES = 20_000  # starting processes costs seconds where they are spawned, not forked
MAX_PROCESSES = 8  # more would wait for the one that reads

Line = tuple[int, str, bytes]  # line number, train or the name of a held-out set, text


@dataclass(frozen=True)
class SlimOrcaConfig:
    """Which records are read and how they are encoded; whoever takes them from a user has checked them."""

    data_dir: str | Path = "data/slimorca"
    source: Literal["auto", "local", "hub", "sample", "composition"] = "auto"  # what lies in data_dir, else the Hub
    subset_size: int | None = 1000  # at most so many records for training; None: all
    test_size: int | None | Literal["auto"] = "auto"  # and for test; auto: a tenth of subset_size
    seq_len: int = 512
    test_ratio: float = 0.05
    seed: int = 0
    truncate: Literal["right", "prompt"] = "right"
    on_error: Literal["raise", "skip"] = "raise"
    sample_size: int = 20_000  # records of the built-in corpus
    sample_tasks: list[str] | None = None  # its kinds of questions; None: all
    composition: CompositionOptions = CompositionOptions()
    template: Literal["markers", "plain"] = "markers"

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """At most so many records of each of SPLITS; None: all."""
        if self.test_size != "auto":
            return self.subset_size, self.test_size
        return self.subset_size, self.subset_size and max(1, self.subset_size // 10)

    @property
    def lines_wanted(self) -> int | None:
        """How many lines are used at most; None: as many as the corpus has."""
        train, test = self.sizes
        test = test if self.test_ratio > 0 else 0
        return None if train is None or test is None else train + test


@dataclass(frozen=True)
class InstructCorpus:
    """A tokenized corpus in memory."""

    tokenizer: Tokenizer
    train: DocumentStore
    test: DocumentStore
    test_sets: dict[str, range]  # which documents of `test` each held-out set has; the first set decides what is best
    report: LoadReport


@dataclass(frozen=True)
class UsedLines:
    """The lines of a corpus that are used, and what they are read with."""

    lines: Iterator[Line]
    count: int
    tokenizer_path: Path
    source: str  # named in errors
    sets: Sequence[str] = SPLITS  # whose lines come in this order where there are several held-out ones


def load_corpus(
    config: SlimOrcaConfig, tokenizer_path: str | Path | None = None, progress: bool = True
) -> InstructCorpus:
    """Load what `config` asks for; the built-in corpus brings its own tokenizer unless one is given by path."""
    start = time.monotonic()
    progress = progress and os.environ.get("SLIMORCA_TQDM") != "0"
    used = _used_lines(config, tokenizer_path, progress)
    tokenizer = load_tokenizer(used.tokenizer_path)
    builders = {split: DocumentStoreBuilder(tokenizer.vocab_size) for split in SPLITS}
    report = LoadReport(used.source, {name: SplitReport() for name in used.sets})
    num_processes = min(_num_cores(), MAX_PROCESSES) if used.count >= POOL_PAYS_LINES else 1
    make_encoder = partial(LineEncoder, config, used.tokenizer_path, used.source)
    with (
        tqdm(total=used.count, desc="tokenizing", unit=" records", disable=not progress) as bar,
        EncoderPool(make_encoder, num_processes) as pool,
    ):
        for chunk in pool.encode(chunked(used.lines, lambda line: 1, CHUNK_LINES)):
            for name, documents in chunk.documents.items():
                builders[split_of(name)].extend(documents)
            for name, found in chunk.reports.items():
                report.splits[name].add(found)
            bar.update(report.records - bar.n)
    report.seconds = time.monotonic() - start
    test_sets, start = {}, 0
    for name in used.sets[1:]:
        stop = start + report.splits[name].conversations
        test_sets[name], start = range(start, stop), stop
    return InstructCorpus(tokenizer, builders["train"].build(), builders["test"].build(), test_sets, report)


def split_of(name: str) -> str:
    """The split that a set belongs to."""
    return "train" if name == "train" else "test"


def read_texts(
    config: SlimOrcaConfig, tokenizer_path: str | Path | None = None, splits: Sequence[str] = SPLITS
) -> Iterator[list[str]]:
    """The messages of one record of these splits after the other, as they stand in the corpus."""
    used = _used_lines(config, tokenizer_path, progress=False)
    for line in used.lines:
        if split_of(line[1]) in splits and (turns := parse_turns(line, used.source, config.on_error)):
            yield [turn.text for turn in turns]


def corpus_digest(config: SlimOrcaConfig) -> str:
    """What tells one corpus from another wherever it lies: the SHA-256 of how its text begins."""
    has_questions = config.source == "composition" or config.composition.mix
    options = [f"{name}={value}" for name, value in asdict(config.composition).items()] if has_questions else []
    if config.source in BUILT_IN:
        return " ".join([BUILT_IN[config.source], *options])
    head = b""
    for block in _blocks(_corpus_file(config, progress=False)):
        head += block
        if len(head) >= DIGEST_BYTES:
            break
    return " ".join([hashlib.sha256(head[:DIGEST_BYTES]).hexdigest(), *options])


def _used_lines(config: SlimOrcaConfig, tokenizer_path: str | Path | None, progress: bool) -> UsedLines:
    if config.source in BUILT_IN:
        records = _made_records(config)
        trained, form = records["train"], config.composition.form
        whole = whole_pieces(trained, form) if config.source == "composition" else []
        tokenizer_path = Path(tokenizer_path or sample_tokenizer(trained, Path(config.data_dir), whole))
        return UsedLines(*_numbered(records), tokenizer_path, BUILT_IN[config.source], sets=list(records))
    tokenizer_path = find_tokenizer(tokenizer_path)  # first: it fails faster than the corpus
    file = _corpus_file(config, progress)
    splits = _split_lines(file, config, progress)
    read, count, sets = _read_lines(file, splits), int((splits != UNUSED).sum()), [*SPLITS]
    if config.composition.mix:
        added, num_added = _numbered(made := make_composition_records(config.composition, config.seed))
        read, count = chain(read, added), count + num_added
        sets += [name for name in made if name != "train"]
    return UsedLines(read, count, tokenizer_path, str(_path(file)), sets)


def _made_records(config: SlimOrcaConfig) -> dict[str, list[Record]]:
    """The records of a built-in corpus by set, `train` first, as many as the config asks for."""
    if config.source == "sample":
        records = make_sample_records(config.sample_size, config.seed, config.test_ratio, config.sample_tasks)
    else:
        records = make_composition_records(config.composition, config.seed)
    train, test = config.sizes
    records = {name: found[: train if name == "train" else test] for name, found in records.items()}
    added = make_composition_records(config.composition, config.seed) if config.composition.mix else {}
    return records | {name: records.get(name, []) + found for name, found in added.items()}


def _numbered(records: Mapping[str, Sequence[Record]]) -> tuple[Iterator[Line], int]:
    """Made records as lines of a corpus, and how many they are."""
    lines = ((name, json.dumps(record).encode()) for name, found in records.items() for record in found)
    count = sum(len(found) for found in records.values())
    return ((number, name, text) for number, (name, text) in enumerate(lines, start=1)), count


def _corpus_file(config: SlimOrcaConfig, progress: bool) -> Path | HubFile:
    here = (path for name in LOCAL_NAMES if (path := Path(config.data_dir) / name).exists())
    return (next(here, None) if config.source != "hub" else None) or _on_hub(config, progress)


def _on_hub(config: SlimOrcaConfig, progress: bool) -> Path | HubFile:
    """The whole file, downloaded; or, for a part of the corpus, one that is downloaded as far as it is read."""
    if config.source == "local":
        raise ValueError(
            f"No corpus in {config.data_dir}: expected one of {', '.join(LOCAL_NAMES)}. Put the file there, or set "
            f"dataset.source=hub to download {HUB_REPO}, or dataset.source=sample for the built-in corpus."
        )
    target = Path(config.data_dir) / LOCAL_NAMES[0]
    if target.exists():
        return target
    file = find_hub_file(HUB_REPO, _choose_jsonl, target)
    return file if config.lines_wanted is not None else file.fetch(progress)


def _choose_jsonl(names: list[str]) -> str:
    return HUB_NAME if HUB_NAME in names else min((name for name in names if name.endswith(".jsonl")), default=HUB_NAME)


def _path(file: Path | HubFile) -> Path:
    return file if isinstance(file, Path) else file.target


def _blocks(file: Path | HubFile) -> Iterator[bytes]:
    return read_blocks(file) if isinstance(file, Path) else file.blocks()


def _split_lines(file: Path | HubFile, config: SlimOrcaConfig, progress: bool) -> NDArray[np.uint8]:
    """The split of every line that is needed; a first pass over the text, so that the next bar has a true total."""
    rule = (config.seed, config.test_ratio, config.sizes)
    with tqdm(desc=f"reading {_path(file).name}", unit_scale=True, disable=not progress) as bar:
        if isinstance(file, Path) and config.lines_wanted is None:
            bar.unit, bar.total = "B", file.stat().st_size
            splits = assign_splits(read_blocks(file, bar.update), *rule)
        else:
            bar.unit, bar.total = " records", config.lines_wanted
            splits = assign_splits(_blocks(file), *rule, bar.update)
            bar.total = bar.n  # the file may hold fewer than were asked for
    if not len(splits):
        raise ValueError(f"{_path(file)} is empty, expected one JSON object a line. Delete it to download it again.")
    return splits


def _read_lines(file: Path | HubFile, splits: NDArray[np.uint8]) -> Iterator[Line]:
    for (number, text), split in zip(numbered_lines(_blocks(file)), splits.tolist(), strict=False):
        if split != UNUSED:
            yield number, SPLITS[split], text


class LineEncoder:
    """Encodes a chunk of lines."""

    def __init__(self, config: SlimOrcaConfig, tokenizer_path: Path, source: str) -> None:
        self._source, self._on_error = source, config.on_error
        # A row of seq_len positions takes one token more: the last one is only ever a label.
        self._encoder = ConversationEncoder(
            load_tokenizer(tokenizer_path), config.seq_len + 1, config.truncate, config.template
        )

    def __call__(self, lines: list[Line]) -> EncodedChunk:
        chunk = ChunkBuilder()
        parsed = []
        for line in lines:
            turns = parse_turns(line, self._source, self._on_error)
            if turns is None:
                chunk.drop(line[1], "broken lines")
            elif turns and (reason := what_is_missing(turns)):
                chunk.drop(line[1], reason)
            elif turns:
                parsed.append((line[1], turns))
        encoded = self._encoder.encode_batch([turns for _, turns in parsed])
        for (split, _), conversation in zip(parsed, encoded, strict=True):
            if conversation is None:
                chunk.drop(split, "without room for their answer")
            else:
                chunk.keep(split, [conversation])
        return chunk.build()


def parse_turns(line: Line, source: str, on_error: Literal["raise", "skip"]) -> list[Turn] | None:
    """The turns of a line, none if it is blank; None for a broken one that may be skipped."""
    number, _, text = line
    if not text.strip():
        return []
    try:
        remedy = "Set dataset.on_error=skip to leave out such lines."
        return parse_line(source, number, text, parse_record, remedy)
    except ValueError:
        if on_error == "raise":
            raise
        return None


def _num_cores() -> int:
    """Those that this process may use, shared with the other ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
