"""SlimOrca and files of its kind: finds or downloads the corpus, splits it, and tokenizes it in memory."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset.files.download import HubFile, find_hub_file
from dataset.files.jsonl import SPLITS, UNUSED, LineSplit, numbered_lines, read_blocks
from dataset.text.conversation import parse_record
from dataset.text.sample_corpus import make_sample_records, sample_tokenizer
from dataset.text.slimorca_encode import EncodingPlan, Line, LoadReport, UsedLines, encode_lines
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder
from dataset.tokenization.lookup import find_tokenizer
from dataset.tokenization.protocol import Tokenizer

HUB_REPO = "Open-Orca/SlimOrca"
HUB_NAME = "oo-labeled_correct.gpt4.sharegpt.jsonl"  # what a copy of the repository calls the file
LOCAL_NAMES = ("SlimOrca.jsonl", "SlimOrca.jsonl.zst", HUB_NAME)


@dataclass(frozen=True)
class SlimOrcaConfig:
    data_dir: str | Path = "data/slimorca"
    source: Literal["auto", "local", "hub", "sample"] = "auto"  # auto: what lies in data_dir, else the Hub
    subset_size: int | None = 1000  # at most so many records of each split; None: all
    seq_len: int = 512
    test_ratio: float = 0.05
    seed: int = 0
    truncate: Literal["right", "prompt"] = "right"
    on_error: Literal["raise", "skip"] = "raise"
    sample_size: int = 20_000  # records of the built-in corpus

    def __post_init__(self) -> None:
        choices = {
            "source": ("auto", "local", "hub", "sample"),
            "truncate": ("right", "prompt"),
            "on_error": ("raise", "skip"),
        }
        problems = [
            f"dataset.{name}={getattr(self, name)!r}, expected one of {', '.join(allowed)}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        if self.subset_size is not None and self.subset_size < 1:
            problems.append(f"dataset.subset_size={self.subset_size}, expected null (all) or at least 1")
        if not 0 <= self.test_ratio < 1:
            problems.append(f"dataset.test_ratio={self.test_ratio}, expected at least 0 and below 1")
        if self.seq_len < 2:
            problems.append(f"dataset.seq_len={self.seq_len}, expected at least 2")
        if self.sample_size < 1:
            problems.append(f"dataset.sample_size={self.sample_size}, expected at least 1")
        if problems:
            raise ValueError("; ".join(problems) + ".")


@dataclass(frozen=True)
class InstructCorpus:
    """A tokenized corpus in memory."""

    tokenizer: Tokenizer
    train: DocumentStore
    test: DocumentStore
    report: LoadReport


def load_corpus(
    config: SlimOrcaConfig, tokenizer_path: str | Path | None = None, progress: bool = True
) -> InstructCorpus:
    """Load what `config` asks for; the built-in corpus brings its own tokenizer unless one is given by path."""
    start = time.monotonic()
    progress = progress and os.environ.get("SLIMORCA_TQDM") != "0"
    lines, tokenizer_path, source = _lines(config, tokenizer_path, progress)
    corpus = _tokenize(lines, tokenizer_path, source, config, progress)
    corpus.report.seconds = time.monotonic() - start
    return corpus


def read_texts(config: SlimOrcaConfig, tokenizer_path: str | Path | None = None) -> Iterator[list[str]]:
    """The messages of one record after the other, as they stand in the corpus."""
    lines, _, _ = _lines(config, tokenizer_path, progress=False)
    for _, _, line in lines.lines:
        yield [turn.text for turn in parse_record(json.loads(line))]


def _lines(
    config: SlimOrcaConfig, tokenizer_path: str | Path | None, progress: bool
) -> tuple[UsedLines, str | Path, str]:
    """The lines that are needed, the tokenizer, and what errors call the corpus."""
    if config.source == "sample":
        records = make_sample_records(config.sample_size, config.seed, config.test_ratio)
        tokenizer_path = tokenizer_path or sample_tokenizer(records["train"], Path(config.data_dir))
        return _sample_lines(records, config), tokenizer_path, "built-in sample corpus"
    tokenizer_path = find_tokenizer(tokenizer_path)  # first: it fails faster than the corpus
    local = find_local(config.data_dir) if config.source != "hub" else None
    file = local or _on_hub(config, progress)
    return _used_lines(file, _split_lines(file, config, progress)), tokenizer_path, str(_path(file))


def find_local(data_dir: str | Path) -> Path | None:
    """The corpus in `data_dir`, if there is one."""
    return next((path for name in LOCAL_NAMES if (path := Path(data_dir) / name).exists()), None)


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
    return file if config.subset_size is not None else file.fetch(progress)


def _choose_jsonl(names: list[str]) -> str:
    found = sorted(name for name in names if name.endswith(".jsonl"))
    if not found:
        raise ValueError(f"The repository {HUB_REPO} holds no .jsonl file, only {', '.join(sorted(names))}.")
    return HUB_NAME if HUB_NAME in found else found[0]


def _path(file: Path | HubFile) -> Path:
    return file if isinstance(file, Path) else file.target


def _split_lines(file: Path | HubFile, config: SlimOrcaConfig, progress: bool) -> NDArray[np.uint8]:
    """The split of every line that is needed; a first pass over the text, so that the next bar has a true total."""
    rule = LineSplit(config.seed, config.test_ratio, config.subset_size)
    bar = tqdm(desc=f"reading {_path(file).name}", unit_scale=True, disable=not progress)
    with bar:
        if isinstance(file, Path) and config.subset_size is None:
            bar.unit, bar.total = "B", file.stat().st_size
            splits = rule.assign(read_blocks(file, bar.update))
        else:
            bar.unit, bar.total = " records", rule.num_wanted
            splits = rule.assign(read_blocks(file) if isinstance(file, Path) else file.blocks(), bar.update)
            bar.total = bar.n  # the file may hold fewer than were asked for
    if not len(splits):
        raise ValueError(f"{_path(file)} is empty, expected one JSON object a line. Delete it to download it again.")
    return splits


def _used_lines(file: Path | HubFile, splits: NDArray[np.uint8]) -> UsedLines:
    def read() -> Iterator[Line]:
        blocks = read_blocks(file) if isinstance(file, Path) else file.blocks()
        for (number, text), split in zip(numbered_lines(blocks), splits.tolist(), strict=False):
            if split != UNUSED:
                yield number, SPLITS[split], text

    return UsedLines(read(), int((splits != UNUSED).sum()))


def _sample_lines(records: dict[str, list[dict[str, Any]]], config: SlimOrcaConfig) -> UsedLines:
    chosen = [(split, record) for split in SPLITS for record in records[split][: config.subset_size]]
    lines = [(number, split, json.dumps(record).encode()) for number, (split, record) in enumerate(chosen, start=1)]
    return UsedLines(iter(lines), len(lines))


def _tokenize(
    lines: UsedLines, tokenizer_path: str | Path, source: str, config: SlimOrcaConfig, progress: bool
) -> InstructCorpus:
    # A row of seq_len positions takes one token more: the last one is only ever a label.
    plan = EncodingPlan(Path(tokenizer_path), source, config.seq_len + 1, config.truncate, config.on_error)
    tokenizer = plan.open_tokenizer()
    builders = {split: DocumentStoreBuilder(tokenizer.vocab_size) for split in SPLITS}
    report = LoadReport(source)
    with tqdm(total=lines.count, desc="tokenizing", unit=" records", disable=not progress) as bar:
        for chunk in encode_lines(plan, lines):
            for split, documents in chunk.documents.items():
                builders[split].extend(documents)
            for split, found in chunk.reports.items():
                report.splits[split].add(found)
            bar.update(report.records - bar.n)
    return InstructCorpus(tokenizer, builders["train"].build(), builders["test"].build(), report)
