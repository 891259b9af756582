"""Yields batches of a packed corpus: every row exactly once an epoch in training, in order in testing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem
from dataset.text.packing import NO_DOCUMENT
from src.distillation.corpus.manifest import TokenizerFacts, load_manifest
from src.distillation.corpus.packed_rows import PackedRows

NO_ROW = -1  # the row id of a row that only fills up the last batch


@dataclass(frozen=True)
class PackedDatasetConfig:
    folder: str | Path
    seq_len: int  # must be the length that the rows were made with
    global_batch_size: int  # rows of a batch over all ranks
    split: Literal["train", "val"] = "train"
    is_test: bool = False
    tokenizer: TokenizerFacts | None = None  # refuse a corpus of another one; None: whatever it was made with
    verify: bool = False  # read every shard once and compare its checksum
    epochs_per_iter: int = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size < 1 or self.global_batch_size % self.world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be shared by {self.world_size} processes. "
                f"Choose a multiple of {self.world_size}."
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} with world_size={self.world_size}; ranks count from 0.")
        if self.epochs_per_iter < 1:
            raise ValueError(f"epochs_per_iter={self.epochs_per_iter}; it must be at least 1.")


@dataclass(frozen=True)
class PackedMetadata:
    """What a model and a schedule have to know about the data."""

    vocab_size: int
    seq_len: int
    pad_id: int
    num_examples: int  # documents
    num_rows: int  # of an epoch
    num_batches: int  # of an epoch; the last one may hold empty rows
    num_tokens: int
    num_trained_tokens: int
    sets: list[str]
    fingerprint: str  # of the whole corpus: what a cache of teacher rows belongs to
    tokenizer: TokenizerFacts


class PackedDataset(IterableDataset[LoaderItem]):
    """Yields (name of the split, this rank's batch, number of real rows over all ranks).

    Beside `inputs`, `labels`, `positions` and `documents` (see dataset.packing.fill_batch) a batch has `row_id`: the
    number of each row, the same in every run, or NO_ROW.

    Every `iter()` in training is one iteration of `epochs_per_iter` epochs and moves on to the next one, counted from
    1. `start_from` may be called at any time, also while loader workers run; it holds from the next `iter()`. A loader
    whose workers are not persistent forgets the count between iterations: call `start_from` before each of them.
    """

    def __init__(self, config: PackedDatasetConfig) -> None:
        super().__init__()
        self.config = config
        folder = Path(config.folder)
        self._manifest = load_manifest(folder)
        self._manifest.check_made_for(folder, config.tokenizer, config.seq_len)
        self._rows = PackedRows(folder, self._manifest, config.split)
        if config.verify:
            self._rows.verify()
        if len(self._rows) < (1 if config.is_test else config.global_batch_size):
            remedy = "a larger --val-fraction" if config.split == "val" else "more data"
            raise ValueError(
                f"No {config.split} batches available: {len(self._rows)} rows of {config.seq_len} tokens in {folder}, "
                f"global_batch_size={config.global_batch_size}. Lower the batch size, or preprocess anew with {remedy}."
            )
        # (number of start_from calls, iteration, batches done): shared memory, so that running workers see a change.
        self._cursor = torch.tensor([0, 1, 0], dtype=torch.int64).share_memory_()
        self._seen_calls, self._next_iteration = 0, 1

    @property
    def metadata(self) -> PackedMetadata:
        facts, tokenizer = self._manifest.splits[self.config.split], self._manifest.tokenizer
        return PackedMetadata(
            vocab_size=tokenizer.vocab_size,
            seq_len=self.config.seq_len,
            pad_id=tokenizer.pad_id,
            num_examples=facts.documents,
            num_rows=facts.rows,
            num_batches=self._batches_per_epoch(),
            num_tokens=facts.tokens,
            num_trained_tokens=facts.tokens - facts.documents,
            sets=[self.config.split],
            fingerprint=self._manifest.fingerprint,
            tokenizer=tokenizer,
        )

    def start_from(self, iteration: int, batches_done: int) -> None:
        """Let the next `iter()` be training iteration `iteration` (from 1) without its first `batches_done` batches."""
        if self.config.is_test:
            raise ValueError("start_from is for training; a test pass always starts at its first row.")
        if iteration < 1 or not 0 <= batches_done <= self.num_batches():
            raise ValueError(
                f"start_from({iteration}, {batches_done}): iterations count from 1, and one has {self.num_batches()} "
                "batches. The data set or the batch size are not those of the run that is continued."
            )
        self._cursor.copy_(torch.tensor([int(self._cursor[0]) + 1, iteration, batches_done]))

    def num_batches(self, iteration: int = 1) -> int:
        """How many batches an iteration (all have the same number) or a test pass yields."""
        return self._batches_per_epoch() * (1 if self.config.is_test else self.config.epochs_per_iter)

    def batch_of(self, members: list[int]) -> Batch:
        """Those rows of the split, numbered from 0 in the order of the manifest."""
        return self._batch(members, len(members))

    def __iter__(self) -> Iterator[LoaderItem]:
        if self.config.is_test:
            return self._items(np.arange(len(self._rows)), range(self._batches_per_epoch()), 0)
        calls, iteration, skip = (int(value) for value in self._cursor)
        if calls == self._seen_calls:
            iteration, skip = self._next_iteration, 0
        self._seen_calls, self._next_iteration = calls, iteration + 1
        return self._train_items(iteration, skip)

    def _train_items(self, iteration: int, skip: int) -> Iterator[LoaderItem]:
        per_epoch, position = self._batches_per_epoch(), 0
        for index in range(self.config.epochs_per_iter):
            left_out = min(max(skip - index * per_epoch, 0), per_epoch)
            if left_out < per_epoch:
                epoch = (iteration - 1) * self.config.epochs_per_iter + index
                order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self._rows))
                yield from self._items(order, range(left_out, per_epoch), position)
                position += per_epoch - left_out

    def _items(self, order: np.ndarray, batches: range, position: int) -> Iterator[LoaderItem]:
        """`position` counts batches since `iter()`: loader workers take turns, as the loader that asks them does."""
        config, worker = self.config, get_worker_info()
        local = config.global_batch_size // config.world_size
        for turn, number in enumerate(batches, start=position):
            if worker is None or turn % worker.num_workers == worker.id:
                start = number * config.global_batch_size
                stop = min(start + config.global_batch_size, len(order))
                first = start + config.rank * local
                mine = order[first : min(first + local, stop)]
                yield config.split, self._batch(mine.tolist(), local), stop - start

    def _batch(self, members: list[int], num_rows: int) -> Batch:
        shape = (num_rows, self.config.seq_len)
        inputs = np.full(shape, self._manifest.tokenizer.pad_id, dtype=np.int32)
        labels = np.full(shape, IGNORE_LABEL_ID, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int32)
        documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
        row_id = np.full(num_rows, NO_ROW, dtype=np.int64)
        for place, index in enumerate(members):
            row_id[place], inputs[place], lengths = self._rows.row(index)
            ends = lengths.cumsum()
            used = ends[-1]
            labels[place, : used - 1] = inputs[place, 1:used]
            labels[place, ends - 1] = IGNORE_LABEL_ID
            positions[place, :used] = np.arange(used) - np.repeat(ends - lengths, lengths)
            documents[place, :used] = np.repeat(np.arange(len(lengths)), lengths)
        arrays = {
            "inputs": inputs,
            "labels": labels,
            "positions": positions,
            "documents": documents,
            "row_id": row_id,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _batches_per_epoch(self) -> int:
        return -(-len(self._rows) // self.config.global_batch_size)
