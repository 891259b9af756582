"""Batches of a data set, read ahead by worker processes."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from dataset.common import LoaderItem
from dataset.cursor import ResumableDataset, RowDataset
from engine.runtime.devices import Runtime

TrainItems = Callable[[int, int], Iterable[LoaderItem]]  # what RunData.train_items is


def load_batches(
    dataset: ResumableDataset, num_workers: int, runtime: Runtime, *, own_generator: bool = False
) -> Iterable[LoaderItem]:
    """The data set itself batches; workers only read ahead.

    A loader draws a seed for its workers from torch's generator at every pass; with `own_generator` it leaves that alone.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=8 if num_workers else None,
        pin_memory=runtime.device.type == "cuda",
        generator=torch.Generator() if own_generator else None,
    )


def train_items(
    dataset: ResumableDataset, num_workers: int, runtime: Runtime, *, own_generator: bool = False
) -> TrainItems:
    """The batches of an iteration but for its first ones."""

    def items(iteration: int, batches_done: int) -> Iterable[LoaderItem]:
        dataset.start_from(iteration, batches_done)
        return load_batches(dataset, num_workers, runtime, own_generator=own_generator)

    return items


def announced(items: TrainItems, dataset: RowDataset, announce: Callable[[int], None]) -> TrainItems:
    """The same; `announce` is told the number of a stage before its first batch, or the first one after a resume."""
    known: int | None = None

    def read(iteration: int, batches_done: int) -> Iterator[LoaderItem]:
        nonlocal known
        for number, item in enumerate(items(iteration, batches_done), start=batches_done):
            stage = dataset.stage_at(iteration, number)
            if stage != known:
                announce(stage)
            known = stage
            yield item

    return read
