"""Reads and writes the rows of a cache: a shard is checked before it is used, and gets its name when it is complete."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from dataset.files.disk import disk_errors, exclusive_lock, file_sha256
from src.distillation.cache.format import (
    CACHE_FILE,
    UNFINISHED,
    Cache,
    CacheFacts,
    CacheShard,
    check_same,
    damaged,
    load_cache,
    ranges_of,
    remove_leftovers,
)
from src.distillation.cache.rows import Row, bytes_per_position, encode, read_group, write_rows
from src.distillation.corpus.manifest import Manifest
from src.distillation.corpus.parquet import ShardFiles
from src.distillation.targets.signal import TeacherSignal

SHARD_BYTES = 64 << 20  # about, before compression
MAX_SHARD_ROWS = 512


class CacheReader:
    """Any row of a cache by its row id, if the corpus still has it."""

    def __init__(self, folder: Path, cache: Cache, corpus: Manifest) -> None:
        self._folder, self._corpus = folder, corpus
        self.files = ShardFiles(folder, cache.shards, partial(read_group, cache.facts), damaged)
        self.use(cache)

    def use(self, cache: Cache) -> None:
        """Read the shards of `cache`, which may have grown."""
        self.files.use(cache.shards)
        shards = cache.known_ranges(self._corpus).shards
        row_ids = np.concatenate([np.zeros(0, dtype=np.int64), *(shard.row_ids() for shard in shards)])
        is_here = np.concatenate([np.zeros(0, dtype=np.bool_), *(shard.is_in(self._corpus) for shard in shards)])
        (places,) = is_here.nonzero()
        self._order = places[np.argsort(row_ids[places], kind="stable")]
        self.row_ids = row_ids[self._order]

    def __contains__(self, row_id: int) -> bool:
        place = int(np.searchsorted(self.row_ids, row_id))
        return place < len(self.row_ids) and int(self.row_ids[place]) == row_id

    def row(self, row_id: int) -> Row:
        place = int(self._order[np.searchsorted(self.row_ids, row_id)])
        found, row = self.files.row(place)
        if found != row_id:
            raise damaged(self._folder, self.files.find(place)[0], f"row {found} is where {row_id} should be")
        return row


class CacheWriter:
    """Collects rows that a cache does not hold yet; so many make a shard, which counts as soon as it is whole.

    A cache that is there already is extended if it was made of the same; a shard that was removed is made again, and
    rows that the corpus no longer has are not read. Of several ranks the main one comes first and names the shards of
    all.
    """

    def __init__(
        self, folder: Path, facts: CacheFacts, corpus: Manifest, shard_rows: int | None = None, *, is_main: bool = True
    ) -> None:
        self._corpus, self._is_main = corpus, is_main
        self._lock = ExitStack()
        if is_main:
            self._lock.enter_context(exclusive_lock(folder))
        try:
            self.cache = self._start(folder, facts)
            self._known = set(CacheReader(folder, self.cache, corpus).row_ids.tolist())
        except ValueError:
            self._lock.close()
            raise
        self._folder = folder
        self.shard_rows = shard_rows
        self._waiting: dict[int, Row] = {}

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, row_ids: Sequence[int], signal: TeacherSignal, *, flushes: bool = True) -> None:
        """Take the rows of a batch that are not known yet; NO_ROW is never one. Without `flushes` they wait however many
        they are."""
        new = [place for place, row_id in enumerate(row_ids) if row_id >= 0 and row_id not in self._known]
        if not new:
            return
        if self.shard_rows is None:
            self.shard_rows = rows_per_shard(self.cache.facts, signal.valid.shape[1])
        for place, row in zip(new, encode(self.cache.facts, signal.rows(new)), strict=True):
            self._known.add(row_ids[place])
            self._waiting[row_ids[place]] = row
            if flushes and len(self._waiting) >= self.shard_rows:
                self.flush()

    def flush(self) -> None:
        """Write what waits as one shard."""
        if self._waiting:
            (number,) = self.free_numbers(1)
            row_ids = self.write_shard(number)
            self.name_shard(number, row_ids)

    def free_numbers(self, count: int) -> list[int]:
        """The lowest numbers that no shard has."""
        taken = {shard.number for shard in self.cache.shards}
        return [number for number in range(len(taken) + count) if number not in taken][:count]

    def write_shard(self, number: int) -> list[int]:
        """Write what waits into a shard that has no name yet; returns its row ids."""
        row_ids = sorted(self._waiting)
        _, unfinished = self._paths(number)
        write_rows(unfinished, self.cache.facts, row_ids, [self._waiting[row_id] for row_id in row_ids])
        self._waiting.clear()
        return row_ids

    def name_shard(self, number: int, row_ids: Sequence[int]) -> None:
        """Let a shard count that this rank or another one has written."""
        target, unfinished = self._paths(number)
        runs = _runs(sorted(row_ids))
        shard = CacheShard(
            file=target.name,
            runs=runs,
            bytes=unfinished.stat().st_size,
            sha256=file_sha256(unfinished),
            corpus=ranges_of(runs, self._corpus.row_ranges),
        )
        with disk_errors(target):
            os.replace(unfinished, target)
        grown = self.cache.with_shard(shard)
        grown.save(self._folder)
        self.cache = grown

    def _paths(self, number: int) -> tuple[Path, Path]:
        """Of a shard, with its name and without."""
        target = self._folder / f"shard-{number:05d}.parquet"
        return target, target.with_name(target.name + UNFINISHED)

    def close(self) -> None:
        """Write what waits, also if it does not fill a shard, and let others write."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave what waits unwritten, and let others write."""
        self._waiting.clear()
        self._lock.close()

    def _start(self, folder: Path, facts: CacheFacts) -> Cache:
        if not (folder / CACHE_FILE).exists():
            if self._is_main:
                remove_leftovers(folder, [])
            return Cache(facts=facts)
        cache = load_cache(folder)
        check_same(folder, cache, facts, self._corpus)
        shards = cache.known_ranges(self._corpus).shards
        kept = Cache(facts=facts, shards=[shard for shard in shards if (folder / shard.file).exists()])
        if not self._is_main:
            return kept
        if len(kept.shards) < len(cache.shards):
            print(
                f"note: {len(cache.shards) - len(kept.shards)} shards that {folder / CACHE_FILE} names are not there; "
                "their rows are made again",
                file=sys.stderr,
            )
        remove_leftovers(folder, kept.shards)
        return kept


def rows_per_shard(facts: CacheFacts, length: int) -> int:
    """How many rows of so many positions a shard has by default."""
    return min(max(1, SHARD_BYTES // (bytes_per_position(facts) * length)), MAX_SHARD_ROWS)


def _runs(row_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow one another."""
    runs: list[tuple[int, int]] = []
    for row_id in row_ids:
        if runs and sum(runs[-1]) == row_id:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row_id, 1))
    return runs
