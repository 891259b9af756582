"""Reads and writes the rows of a cache: every shard is checked before it is believed, and whole before it counts."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dataset.files.disk import disk_errors, file_sha256
from dataset.files.locks import exclusive_lock
from src.distillation.cache.format import (
    CACHE_FILE,
    UNFINISHED,
    Cache,
    CacheFacts,
    CacheShard,
    check_same,
    check_sizes,
    damaged,
    load_cache,
    remove_leftovers,
)
from src.distillation.cache.rows import Row, bytes_per_position, encode, read_group, write_rows
from src.distillation.corpus.parquet import import_parquet
from src.distillation.targets.signal import TeacherSignal

SHARD_BYTES = 64 << 20  # about, before compression
MAX_SHARD_ROWS = 512
KEPT_GROUPS = 64  # of about 1 MiB
KEPT_FILES = 128


class CacheReader:
    """Any row of a cache by its row id."""

    def __init__(self, folder: Path, cache: Cache) -> None:
        check_sizes(folder, cache.shards)
        self._folder, self._facts = folder, cache.facts
        self._open = lru_cache(KEPT_FILES)(self._open_file)
        self._group = lru_cache(KEPT_GROUPS)(self._read_group)
        self.use(cache)

    def use(self, cache: Cache) -> None:
        """What is in the shards of `cache`, which may have grown."""
        self._shards = cache.shards
        counts = [shard.num_rows for shard in cache.shards]
        row_ids = np.concatenate([np.zeros(0, dtype=np.int64), *(shard.row_ids() for shard in cache.shards)])
        self._order = np.argsort(row_ids, kind="stable")
        self._row_ids = row_ids[self._order]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row_ids)

    def __contains__(self, row_id: int) -> bool:
        place = int(np.searchsorted(self._row_ids, row_id))
        return place < len(self._row_ids) and int(self._row_ids[place]) == row_id

    def row(self, row_id: int) -> Row:
        place = int(self._order[np.searchsorted(self._row_ids, row_id)])
        number = int(np.searchsorted(self._ends, place, side="right"))
        shard = self._shards[number]
        within = place - (int(self._ends[number]) - shard.num_rows)
        per_group = self._open(shard.file).metadata.row_group(0).num_rows
        row_ids, rows = self._group(shard.file, within // per_group)
        if row_ids[within % per_group] != row_id:
            raise damaged(self._folder, shard, f"row {row_ids[within % per_group]} stands where {row_id} should")
        return rows[within % per_group]

    def verify(self, on_shard: Callable[[CacheShard], Any] = lambda shard: None) -> None:
        """Compare the checksum of every shard."""
        for shard in self._shards:
            self._check_sum(shard)
            on_shard(shard)

    def _check_sum(self, shard: CacheShard) -> None:
        if (found := file_sha256(self._folder / shard.file)) != shard.sha256:
            raise damaged(self._folder, shard, f"SHA-256 {found}, expected {shard.sha256}")

    def _open_file(self, name: str) -> Any:
        parquet = import_parquet()
        import pyarrow as pa

        shard = self._named(name)
        self._check_sum(shard)
        try:
            file = parquet.ParquetFile(self._folder / name, memory_map=True, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self._folder, shard, error) from error
        if file.metadata.num_rows != shard.num_rows:
            raise damaged(self._folder, shard, f"{file.metadata.num_rows} rows, expected {shard.num_rows}")
        return file

    def _read_group(self, name: str, group: int) -> tuple[list[int], list[Row]]:
        import pyarrow as pa

        try:
            return read_group(self._open(name), group, self._facts)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise damaged(self._folder, self._named(name), error) from error

    def _named(self, name: str) -> CacheShard:
        return next(shard for shard in self._shards if shard.file == name)


class CacheWriter:
    """Collects rows that a cache does not hold yet; so many make a shard, which counts as soon as it is whole.

    A cache that is there already is gone on with if it was made of the same; a shard that was removed is made anew.
    """

    def __init__(self, folder: Path, facts: CacheFacts, shard_rows: int | None = None) -> None:
        self._lock = ExitStack()
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(exclusive_lock(folder))
        try:
            self.cache = self._start(folder, facts)
        except ValueError:
            self._lock.close()
            raise
        self._folder = folder
        self.shard_rows = shard_rows
        self._known = {int(row_id) for shard in self.cache.shards for row_id in shard.row_ids()}
        self._waiting: dict[int, Row] = {}

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, row_ids: Sequence[int], signal: TeacherSignal) -> None:
        """Take the rows of a batch that are not known yet; NO_ROW is never one."""
        new = [place for place, row_id in enumerate(row_ids) if row_id >= 0 and row_id not in self._known]
        if not new:
            return
        if self.shard_rows is None:
            row_bytes = bytes_per_position(self.cache.facts) * signal.valid.shape[1]
            self.shard_rows = min(max(1, SHARD_BYTES // row_bytes), MAX_SHARD_ROWS)
        for place, row in zip(new, encode(self.cache.facts, signal.rows(new)), strict=True):
            self._known.add(row_ids[place])
            self._waiting[row_ids[place]] = row
            if len(self._waiting) >= self.shard_rows:
                self.flush()

    def flush(self) -> None:
        """Write what waits as one shard."""
        if not self._waiting:
            return
        row_ids = sorted(self._waiting)
        taken = {shard.number for shard in self.cache.shards}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        target = self._folder / f"shard-{number:05d}.parquet"
        unfinished = target.with_name(target.name + UNFINISHED)
        write_rows(unfinished, self.cache.facts, row_ids, [self._waiting[row_id] for row_id in row_ids])
        shard = CacheShard(
            file=target.name,
            runs=_runs(row_ids),
            bytes=unfinished.stat().st_size,
            sha256=file_sha256(unfinished),
        )
        with disk_errors(target):
            os.replace(unfinished, target)
        grown = self.cache.with_shard(shard)
        grown.save(self._folder)
        self.cache = grown
        self._waiting.clear()

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
            remove_leftovers(folder, None)
            return Cache(facts=facts)
        cache = load_cache(folder)
        check_same(folder, cache.facts, facts)
        there = [shard for shard in cache.shards if (folder / shard.file).exists()]
        check_sizes(folder, there)
        if len(there) < len(cache.shards):
            print(
                f"note: {len(cache.shards) - len(there)} shards that {folder / CACHE_FILE} names are not there; their rows "
                "are made anew",
                file=sys.stderr,
            )
            cache = Cache(facts=cache.facts, shards=there)
        remove_leftovers(folder, cache)
        return cache


def _runs(row_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow one another."""
    runs: list[tuple[int, int]] = []
    for row_id in row_ids:
        if runs and sum(runs[-1]) == row_id:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row_id, 1))
    return runs
