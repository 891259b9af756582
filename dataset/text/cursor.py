"""Yields batches of tokenized conversations: every one exactly once an epoch in training, in order in testing."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dataset.common import LoaderItem
from dataset.text.packing import RowPlanner, Rows, fill_batch
from dataset.text.token_store import Documents


@dataclass(frozen=True)
class InstructDatasetConfig:
    seq_len: int
    global_batch_size: int  # rows of a batch over all ranks
    vocab_size: int
    pad_id: int
    is_test: bool = False
    packing: bool = True  # several documents a row
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
class InstructMetadata:
    """What a model and a schedule have to know about the data."""

    vocab_size: int
    seq_len: int
    pad_id: int
    num_examples: int
    num_rows: int  # of an epoch; with packing fewer than examples
    num_batches: int  # of an epoch; the last one may hold empty rows
    num_tokens: int
    num_trained_tokens: int
    sets: list[str]


class InstructDataset(IterableDataset[LoaderItem]):
    """Yields (set name, this rank's batch, number of real rows over all ranks).

    Every `iter()` in training is one iteration of `epochs_per_iter` epochs and moves on to the next one, counted from
    1. `start_from` may be called at any time, also while loader workers run; it holds from the next `iter()`. A loader
    whose workers are not persistent forgets the count between iterations: call `start_from` before each of them.
    """

    def __init__(self, store: Documents, config: InstructDatasetConfig) -> None:
        super().__init__()
        self.config = config
        self._store = store
        if not config.is_test and len(store) < config.global_batch_size:
            raise ValueError(
                f"No train batches available: {len(store)} examples, global_batch_size={config.global_batch_size}. "
                "Lower the batch size or raise dataset.subset_size."
            )
        self._planner = RowPlanner(store.lengths(), config.seq_len, config.packing)
        # (number of start_from calls, iteration, batches done): shared memory, so that running workers see a change.
        self._cursor = torch.tensor([0, 1, 0], dtype=torch.int64).share_memory_()
        self._seen_calls, self._next_iteration = 0, 1

    @property
    def metadata(self) -> InstructMetadata:
        return InstructMetadata(
            vocab_size=self.config.vocab_size,
            seq_len=self.config.seq_len,
            pad_id=self.config.pad_id,
            num_examples=len(self._store),
            num_rows=self._planner.num_rows,
            num_batches=self._batches_per_epoch(),
            num_tokens=self._store.num_tokens,
            num_trained_tokens=self._store.num_trained_tokens,
            sets=[self._set_name()],
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

    def __iter__(self) -> Iterator[LoaderItem]:
        if self.config.is_test:
            return self._items(self._planner.in_order(), range(self._batches_per_epoch()), 0)
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
                rows = self._planner.shuffled(self.config.seed, epoch)
                yield from self._items(rows, range(left_out, per_epoch), position)
                position += per_epoch - left_out

    def _items(self, rows: Rows, batches: range, position: int) -> Iterator[LoaderItem]:
        """`position` counts batches since `iter()`: loader workers take turns, as the loader that asks them does."""
        config, worker = self.config, get_worker_info()
        local = config.global_batch_size // config.world_size
        for turn, number in enumerate(batches, start=position):
            if worker is None or turn % worker.num_workers == worker.id:
                start = number * config.global_batch_size
                stop = min(start + config.global_batch_size, len(rows))
                first = start + config.rank * local
                mine = [rows.row(index) for index in range(first, min(first + local, stop))]
                batch = fill_batch(self._store, mine, local, config.seq_len, config.pad_id)
                yield self._set_name(), batch, stop - start

    def _batches_per_epoch(self) -> int:
        return -(-self._planner.num_rows // self.config.global_batch_size)

    def _set_name(self) -> str:
        return "test" if self.config.is_test else "train"
