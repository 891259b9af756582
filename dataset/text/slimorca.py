"""SlimOrca and corpora of its kind: splits the records of their files, and tokenizes them in memory."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset.files.jsonl import SPLITS, UNUSED, assign_splits
from dataset.files.records import DataFile, numbered_records, path_of, text_blocks
from dataset.text.composition import CompositionOptions, make_composition_records, whole_pieces
from dataset.text.conversation import question_key
from dataset.text.corpus_files import SLIMORCA, CorpusPlace, wanted_records
from dataset.text.encoded import LoadReport, SplitReport, split_of
from dataset.text.encoder_pool import EncoderPool, chunked
from dataset.text.line_encoder import Line, LineEncoder, parse_turns
from dataset.text.sample_corpus import Record, make_sample_records, sample_tokenizer
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import Tokenizer

CHUNK_LINES = 1024
DIGEST_BYTES = 1 << 20  # less than the first step of a download
BUILT_IN = {"sample": "built-in sample corpus", "composition": "made-up facts"}
POOL_PAYS_LINES = 20_000  # starting processes costs seconds where they are spawned, not forked
MAX_PROCESSES = 8  # more would wait for the one that reads


@dataclass(frozen=True)
class SlimOrcaConfig:
    """Which records are read and how they are encoded; whoever takes them from a user has checked them."""

    repo: str = SLIMORCA  # of the Hub; or a folder or file of this machine
    files: str | None = None  # only those of it like this pattern
    data_dir: str | Path | None = None  # where its files go to; None: data/<its name>
    source: Literal["auto", "local", "hub", "sample", "composition"] = "auto"  # what lies in data_dir, else the Hub
    sample: float = 1.0  # share of the records that is used, by a hash of what they say
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
    later: tuple["SlimOrcaConfig", ...] = ()  # corpora that follow, of which all is for training

    @property
    def folder(self) -> Path:
        return Path("data") / Path(self.repo).name.lower() if self.data_dir is None else Path(self.data_dir)

    @property
    def place(self) -> CorpusPlace:
        assert self.source not in ("sample", "composition"), "what is made has no files"
        return CorpusPlace(self.repo, self.files, self.folder, self.source)

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
    """A tokenized corpus, with those that follow it."""

    tokenizer: Tokenizer
    train: DocumentStore
    test: DocumentStore
    stages: list[range]  # which documents of `train` each stage has
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
    config: SlimOrcaConfig,
    tokenizer_path: str | Path | None = None,
    progress: bool = True,
    folder: Path | None = None,
) -> InstructCorpus:
    """Load what `config` asks for, into memory or into files of `folder`, which may go once they are mapped.

    The built-in corpus brings its own tokenizer unless one is given by path.
    """
    start = time.monotonic()
    progress = progress and os.environ.get("SLIMORCA_TQDM") != "0"
    used = _used_lines(config, tokenizer_path, progress)
    tokenizer = load_tokenizer(used.tokenizer_path)
    builders = {split: DocumentStoreBuilder(tokenizer.vocab_size, folder and folder / split) for split in SPLITS}
    report = LoadReport(used.source, {name: SplitReport() for name in used.sets})
    num_processes = min(_num_cores(), MAX_PROCESSES) if used.count >= POOL_PAYS_LINES else 1
    # A row of seq_len positions takes one token more: the last one is only ever a label.
    how = (config.seq_len + 1, config.truncate, config.template, config.on_error)
    make_encoder = partial(LineEncoder, used.tokenizer_path, *how, held_out_questions(config, used.tokenizer_path))
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
    sets = {split: _documents_of([name for name in used.sets if split_of(name) == split], report) for split in SPLITS}
    stores = {split: builder.build() for split, builder in builders.items()}
    return InstructCorpus(tokenizer, stores["train"], stores["test"], [*sets["train"].values()], sets["test"], report)


def _documents_of(sets: Sequence[str], report: LoadReport) -> dict[str, range]:
    """Which documents of their common store each set has."""
    ends = np.cumsum([report.splits[name].conversations for name in sets], dtype=np.int64).tolist()
    return {name: range(end - report.splits[name].conversations, end) for name, end in zip(sets, ends, strict=True)}


def held_out_questions(config: SlimOrcaConfig, tokenizer_path: Path) -> frozenset[str]:
    """What is asked in the records that are held out, where later stages might ask it too."""
    if not config.later:
        return frozenset()
    lines = _used_lines(replace(config, later=()), tokenizer_path, progress=False).lines
    found = (parse_turns(line, config.on_error) for line in lines if split_of(line[2]) == "test")
    return frozenset(question_key(turns) for turns in found if turns)


def read_texts(
    config: SlimOrcaConfig, tokenizer_path: str | Path | None = None, splits: Sequence[str] = SPLITS
) -> Iterator[list[str]]:
    """The messages of one record of these splits after the other, as they stand in the corpus."""
    later = config.later if "train" in splits else ()
    used = _used_lines(replace(config, later=later), tokenizer_path, progress=False)
    for line in used.lines:
        if split_of(line[2]) in splits and (turns := parse_turns(line, config.on_error)):
            yield [turn.text for turn in turns]


def corpus_digest(config: SlimOrcaConfig) -> str:
    """What tells one corpus from another wherever it lies: the SHA-256 of how its text begins."""
    has_questions = config.source == "composition" or config.composition.mix
    options = [f"{name}={value}" for name, value in asdict(config.composition).items()] if has_questions else []
    if config.source in BUILT_IN:
        return " ".join([BUILT_IN[config.source], *options])
    head = b""
    for block in text_blocks(next(iter(config.place.data_files(needs_all=False, progress=False)))):
        head += block
        if len(head) >= DIGEST_BYTES:
            break
    return " ".join([hashlib.sha256(head[:DIGEST_BYTES]).hexdigest(), *options])


def _used_lines(config: SlimOrcaConfig, tokenizer_path: str | Path | None, progress: bool) -> UsedLines:
    if config.source in BUILT_IN:
        records = _made_records(config)
        trained, form = records["train"], config.composition.form
        whole = whole_pieces(trained, form) if config.source == "composition" else []
        tokenizer_path = Path(tokenizer_path or sample_tokenizer(trained, config.folder, whole))
        return UsedLines(*_numbered(records, config), tokenizer_path, BUILT_IN[config.source], sets=list(records))
    tokenizer_path = find_tokenizer(tokenizer_path)  # first: it fails faster than the corpus
    files, splits = _split_records(config, progress)
    read, count, sets = _read_lines(files, splits), int((splits != UNUSED).sum()), [*SPLITS]
    if config.composition.mix:
        added, num_added = _numbered(made := make_composition_records(config.composition, config.seed), config)
        read, count = chain(read, added), count + num_added
        sets += [name for name in made if name != "train"]
    source = str(path_of(files[0])) if len(files) == 1 else config.repo
    for number, stage in enumerate(config.later, start=2):
        files, splits = _split_records(stage, progress)
        read = chain(read, _read_lines(files, splits, (name := f"train {number}",)))
        count, source, sets = count + int((splits != UNUSED).sum()), f"{source}, {stage.repo}", [*sets, name]
    return UsedLines(read, count, tokenizer_path, source, sets)


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


def _numbered(records: Mapping[str, Sequence[Record]], config: SlimOrcaConfig) -> tuple[Iterator[Line], int]:
    """Made records as lines of a corpus, and how many they are."""
    source = BUILT_IN.get(config.source, BUILT_IN["composition"])
    lines = ((name, json.dumps(record).encode()) for name, found in records.items() for record in found)
    count = sum(len(found) for found in records.values())
    return ((source, number, name, text) for number, (name, text) in enumerate(lines, start=1)), count


def _split_records(config: SlimOrcaConfig, progress: bool) -> tuple[list[DataFile], NDArray[np.uint8]]:
    """The files that are needed, and the split of every record in them; a first pass, so that the next bar has a true
    total."""
    files: list[DataFile] = []
    needs_all = config.lines_wanted is None
    with tqdm(desc=f"reading {Path(config.repo).name}", unit_scale=True, disable=not progress) as bar:
        bar.unit, bar.total = ("B", 0) if needs_all else (" records", config.lines_wanted)

        def wanted() -> Iterator[NDArray[np.bool_]]:
            for file in config.place.data_files(needs_all, progress):
                files.append(file)
                bar.total += path_of(file).stat().st_size if needs_all else 0
                yield from wanted_records(file, config.sample, bar.update if needs_all else ignored)

        rule = (config.seed, config.test_ratio, config.sizes)
        splits = assign_splits(wanted(), *rule, ignored if needs_all else bar.update)
        bar.total = bar.n  # there may be fewer than were asked for
    if not len(splits):
        share = f" (dataset.sample={config.sample} may take none of a few)" if config.sample < 1 else ""
        raise ValueError(
            f"{', '.join(str(path_of(file)) for file in files)} is empty, expected one JSON object a line, or rows{share}. "
            "Delete it to download it again."
        )
    return files, splits


def ignored(count: int) -> None:
    """What needs no progress bar."""


def _read_lines(files: Sequence[DataFile], splits: NDArray[np.uint8], names: Sequence[str] = SPLITS) -> Iterator[Line]:
    contents = ((str(path_of(file)), *found) for file in files for found in numbered_records(file))
    for split, (file, number, content) in zip(splits.tobytes(), contents, strict=False):
        if split != UNUSED:
            yield file, number, names[split], content


def _num_cores() -> int:
    """Those that this process may use; of the ranks of a machine one tokenizes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
