"""A directory of teacher's answers: what its cache.json says, and whether it is what a run expects.

`cache.json` names the shards that count; each appears there only when it is whole. The rows are those of the packed
corpus, by their `row_id`: those of corpus shards that are still the same stay good when the corpus changes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataset.files.disk import write_file
from dataset.files.json_file import read_model
from src.distillation.corpus.manifest import Manifest, Record, RowRange
from src.distillation.targets.signal import Kind, TeacherFacts

CACHE_FILE = "cache.json"
UNFINISHED = ".tmp"
OUR_FILE = re.compile(r"shard-\d{5,}\.parquet(\.tmp)?|cache\.json(\.\d+)?\.tmp")
PROGRAM = "python scripts/cache_teacher_logits.py"

ValueDType = Literal["fp16", "u8"]


class CacheError(ValueError):
    """A cache that is damaged, incomplete, or made for something else."""


class CacheFacts(Record):
    """What all rows of a cache have in common."""

    teacher: str  # its fingerprint
    tokenizer_name: str
    tokenizer_sha256: str
    corpus: str  # the fingerprint of its manifest when the newest rows were written
    vocab_size: int = Field(ge=1)
    kind: Kind
    k: int = Field(ge=1)
    temperatures: tuple[float, ...]
    value_dtype: ValueDType


def ranges_of(runs: Sequence[tuple[int, int]], ranges: Sequence[RowRange]) -> list[RowRange]:
    """The ranges that hold rows of these runs."""
    return [
        (first, count, sha256)
        for first, count, sha256 in ranges
        if any(start < first + count and first < start + length for start, length in runs)
    ]


class CacheShard(Record):
    file: str = Field(pattern=r"^shard-\d{5,}\.parquet$")
    runs: list[tuple[int, int]]  # the rows in it: (the first row id, how many follow one another), ascending
    bytes: int = Field(ge=1)
    sha256: str
    corpus: list[RowRange] | None = None  # what its rows are of; none, in caches of before: of the corpus of the facts

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.runs)

    @property
    def number(self) -> int:
        return int(self.file.removeprefix("shard-").removesuffix(".parquet"))

    def row_ids(self) -> NDArray[np.int64]:
        return np.concatenate([np.arange(first, first + count) for first, count in self.runs], dtype=np.int64)

    def is_in(self, corpus: Manifest) -> NDArray[np.bool_]:
        """Which of its rows the corpus still has."""
        row_ids, here = self.row_ids(), set(corpus.row_ranges)
        found = np.zeros(len(row_ids), dtype=np.bool_)
        for first, count, sha256 in self.corpus or ():
            if (first, count, sha256) in here:
                found |= (row_ids >= first) & (row_ids < first + count)
        return found


class Cache(Record):
    version: Literal[1] = 1
    facts: CacheFacts
    shards: list[CacheShard] = []

    def known_ranges(self, corpus: Manifest) -> "Cache":
        """The same where every shard says what its rows are of; one of before can if sources were only added since."""
        if all(shard.corpus is not None for shard in self.shards):
            return self
        states = (corpus.with_first_sources(number) for number in range(len(corpus.sources), 0, -1))
        former = next((state for state in states if state.fingerprint == self.facts.corpus), None)
        ranges = [] if former is None else former.row_ranges
        shards = [
            shard if shard.corpus is not None else shard.model_copy(update={"corpus": ranges_of(shard.runs, ranges)})
            for shard in self.shards
        ]
        return self.model_copy(update={"shards": shards})

    def with_shard(self, shard: CacheShard) -> "Cache":
        return Cache(facts=self.facts, shards=sorted([*self.shards, shard], key=lambda known: known.number))

    def save(self, folder: Path) -> None:
        write_file(folder / CACHE_FILE, self.model_dump_json(indent=1) + "\n")


def cache_facts(facts: TeacherFacts, corpus: Manifest, value_dtype: ValueDType) -> CacheFacts:
    return CacheFacts(
        teacher=facts.fingerprint,
        tokenizer_name=corpus.tokenizer.name,
        tokenizer_sha256=corpus.tokenizer.sha256,
        corpus=corpus.fingerprint,
        vocab_size=facts.vocab_size,
        kind=facts.kind,
        k=facts.k,
        temperatures=facts.temperatures,
        value_dtype=value_dtype,
    )


def load_cache(folder: Path) -> Cache:
    return read_model(
        folder / CACHE_FILE,
        Cache,
        "It is of another version or damaged: choose another folder, or make the cache again.",
        CacheError,
        f"Make the cache first: {PROGRAM} --data-path <the corpus> --teacher-model <the teacher> --output-dir {folder}",
    )


def check_same(folder: Path, cache: Cache, expected: CacheFacts, corpus: Manifest) -> None:
    """Refuse a cache of anything else than what is expected, or without any row that the corpus has."""
    found, shards = cache.facts, cache.known_ranges(corpus).shards
    problems = []
    has_rows = found.tokenizer_sha256 == corpus.tokenizer.sha256 and any(s.is_in(corpus).any() for s in shards)
    if shards and not has_rows:
        problems.append(f"rows of another corpus ({found.corpus[:12]}, expected {expected.corpus[:12]})")
    problems += [
        text
        for name, text in (
            (
                "tokenizer_sha256",
                f"ids of the tokenizer {found.tokenizer_name} ({found.tokenizer_sha256[:12]}), expected "
                f"{expected.tokenizer_name} ({expected.tokenizer_sha256[:12]})",
            ),
            ("vocab_size", f"a vocabulary of {found.vocab_size} ids, expected {expected.vocab_size}"),
            ("teacher", f"answers of another teacher ({found.teacher[:12]}, expected {expected.teacher[:12]})"),
            ("kind", f"teacher_kind={found.kind}, expected {expected.kind}"),
            ("k", f"teacher_topk={found.k}, expected {expected.k}"),
            ("temperatures", f"temperatures {_list(found.temperatures)}, expected {_list(expected.temperatures)}"),
            ("value_dtype", f"values as {found.value_dtype}, expected {expected.value_dtype}"),
        )
        if getattr(found, name) != getattr(expected, name)
    ]
    if problems:
        raise CacheError(
            f"{folder / CACHE_FILE} holds {'; '.join(problems)}. Ask for what it holds, or make another cache: "
            f"{PROGRAM} --output-dir <another folder> --topk {expected.k} --kind {expected.kind} ..."
        )


def damaged(folder: Path, shard: CacheShard, found: object) -> CacheError:
    return CacheError(
        f"The shard {folder / shard.file} cannot be used: {found}. Remove it if it is there, and run {PROGRAM} again as "
        "before: it makes the rows that are missing."
    )


def remove_leftovers(folder: Path, shards: Sequence[CacheShard]) -> None:
    """Remove what an interrupted run left: files of ours that are none of these shards."""
    named = {shard.file for shard in shards}
    for file in folder.iterdir():
        if OUR_FILE.fullmatch(file.name) and file.name not in named:
            file.unlink()


def _list(temperatures: tuple[float, ...]) -> str:
    return ", ".join(f"{temperature:g}" for temperature in temperatures)
