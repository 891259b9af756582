"""The cursor of a data set: which batch is next for a rank and a loader worker, and how a run resumes there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dataset.common import Batch, LoaderItem


@dataclass(frozen=True)
class CursorConfig:
    global_batch_size: int  # rows of a batch over all ranks
    is_test: bool = False  # one pass over the rows in order, instead of shuffled iterations
    epochs_per_iter: int = 1
    epochs: int | None = None  # after which training ends, so that the last iteration may be shorter
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    test_rows: int | None = None  # that a test pass reads at most, the first ones; None: all

    def __post_init__(self) -> None:
        check_ranks(self.global_batch_size, self.rank, self.world_size)
        if self.epochs_per_iter < 1:
            raise ValueError(f"epochs_per_iter={self.epochs_per_iter}; it must be at least 1.")

    def epochs_of(self, iteration: int) -> range:
        return epochs_of(iteration, self.epochs_per_iter, self.epochs)


def epochs_of(iteration: int, epochs_per_iter: int, epochs: int | None) -> range:
    """The epochs of an iteration, counted from 0; iterations count from 1. One that `epochs` ends within is shorter."""
    first, stop = (iteration - 1) * epochs_per_iter, iteration * epochs_per_iter
    return range(first, epochs if epochs is not None and first < epochs else stop)[:epochs_per_iter]


def check_ranks(global_batch_size: int, rank: int, world_size: int, option: str = "world_size") -> None:
    if global_batch_size < 1 or global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size={global_batch_size} cannot be shared by {world_size} processes. "
            f"Choose a multiple of {world_size}."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} with {option}={world_size}; ranks count from 0.")


def is_for_this_worker(position: int) -> bool:
    """Loader workers take turns, as the loader that asks them does, so that batches keep their order."""
    worker = get_worker_info()
    return worker is None or position % worker.num_workers == worker.id


class ResumableDataset(IterableDataset[LoaderItem]):
    """Yields (set name, this rank's batch, number of real rows over all ranks).

    Every `iter()` in training is one iteration and moves on to the next one, counted from 1. `start_from` may be called
    at any time, also while loader workers run; it holds from the next `iter()`. A loader whose workers are not
    persistent forgets the count between iterations: call `start_from` before each of them.
    """

    def __init__(self, is_test: bool) -> None:
        super().__init__()
        self._is_test = is_test
        # (number of start_from calls, iteration, batches done): shared memory, so that running workers see a change.
        self._cursor = torch.tensor([0, 1, 0], dtype=torch.int64).share_memory_()
        self._seen_calls, self._next_iteration = 0, 1

    def start_from(self, iteration: int, batches_done: int) -> None:
        """Let the next `iter()` be training iteration `iteration` (from 1) without its first `batches_done` batches."""
        if self._is_test:
            raise ValueError("start_from is for training; a test pass always starts at its first row.")
        if iteration < 1 or batches_done < 0:
            raise ValueError(f"start_from({iteration}, {batches_done}): iterations count from 1, batches from 0.")
        self._cursor.copy_(torch.tensor([int(self._cursor[0]) + 1, iteration, batches_done]))

    def __iter__(self) -> Iterator[LoaderItem]:
        if self._is_test:
            return self._test_items()
        calls, iteration, skip = (int(value) for value in self._cursor)
        if calls == self._seen_calls:
            iteration, skip = self._next_iteration, 0
        self._seen_calls, self._next_iteration = calls, iteration + 1
        return self._train_items(iteration, skip)

    def num_batches(self, iteration: int = 1) -> int:
        """How many batches an iteration or a test pass yields."""
        raise NotImplementedError

    def _test_items(self) -> Iterator[LoaderItem]:
        raise NotImplementedError

    def _train_items(self, iteration: int, skip: int) -> Iterator[LoaderItem]:
        """The batches of an iteration without its first `skip`, those for this worker only."""
        raise NotImplementedError


class RowSource(Protocol):
    """Rows of text, packed in whatever way; an order is indexed from 0 and names what `batch` takes."""

    def __len__(self) -> int: ...

    def in_order(self) -> Any: ...

    def shuffled(self, seed: int, epoch: int) -> Any:
        """Every row once, in an order drawn from (seed, epoch)."""
        ...

    def batch(self, rows: Sequence[Any], num_rows: int) -> Batch:
        """The batch of these rows; the rest of `num_rows` stays empty."""
        ...

    def check_enough(self, global_batch_size: int, is_test: bool) -> None:
        """Raises a ValueError if there is too little for one batch."""
        ...


class Stage(NamedTuple):
    """Rows that take the place of those before from an epoch on."""

    first_epoch: int
    rows: RowSource


class RowDataset(ResumableDataset):
    """Rows of text: every one exactly once an epoch in training, in order in testing; the last batch may be short.

    In training `later` rows may follow, stage after stage.
    """

    def __init__(self, rows: RowSource, config: CursorConfig, set_name: str, later: Sequence[Stage] = ()) -> None:
        super().__init__(config.is_test)
        self.stages = [Stage(0, rows), *later]
        for stage in self.stages:
            stage.rows.check_enough(config.global_batch_size, config.is_test)
        self.rows, self.config, self.set_name = rows, config, set_name

    def stage_of(self, epoch: int) -> int:
        """The number of the stage that an epoch belongs to, from 0."""
        return sum(stage.first_epoch <= epoch for stage in self.stages[1:])

    def batches_of(self, epoch: int) -> int:
        return -(-len(self.stages[self.stage_of(epoch)].rows) // self.config.global_batch_size)

    @property
    def num_test_rows(self) -> int:
        return min(len(self.rows), self.config.test_rows or len(self.rows))

    def num_batches(self, iteration: int = 1) -> int:
        if self.config.is_test:
            return -(-self.num_test_rows // self.config.global_batch_size)
        return sum(map(self.batches_of, self.config.epochs_of(iteration)))

    def stage_at(self, iteration: int, batch: int) -> int:
        """The number of the stage that a batch of an iteration belongs to."""
        for epoch in self.config.epochs_of(iteration):
            batch -= self.batches_of(epoch)
            if batch < 0:
                break
        return self.stage_of(epoch)

    def start_from(self, iteration: int, batches_done: int) -> None:
        if batches_done > self.num_batches(iteration):
            raise ValueError(
                f"start_from({iteration}, {batches_done}): this iteration has {self.num_batches(iteration)} batches. The "
                "data set or the batch size are not those of the run that is resumed."
            )
        super().start_from(iteration, batches_done)

    def _test_items(self) -> Iterator[LoaderItem]:
        return self._items(self.rows, self.rows.in_order(), range(self.num_batches()), 0)

    def _train_items(self, iteration: int, skip: int) -> Iterator[LoaderItem]:
        position = 0
        for epoch in self.config.epochs_of(iteration):
            left_out = min(skip, self.batches_of(epoch))
            skip -= left_out
            left = range(left_out, self.batches_of(epoch))
            if left:
                rows = self.stages[self.stage_of(epoch)].rows
                yield from self._items(rows, rows.shuffled(self.config.seed, epoch), left, position)
                position += len(left)

    def _items(self, rows: RowSource, order: Any, batches: range, position: int) -> Iterator[LoaderItem]:
        """`position` counts batches since `iter()`."""
        num_rows = self.num_test_rows if self.config.is_test else len(order)
        size = self.config.global_batch_size
        local = size // self.config.world_size
        for turn, number in enumerate(batches, start=position):
            if is_for_this_worker(turn):
                start, stop = number * size, min((number + 1) * size, num_rows)
                first = start + self.config.rank * local
                mine = [order[index] for index in range(first, min(first + local, stop))]
                yield self.set_name, rows.batch(mine, local), stop - start
