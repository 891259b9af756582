"""Batches of a data set, read ahead by worker processes."""

from collections.abc import Callable, Iterable

import torch
from torch.utils.data import DataLoader

from dataset.common import LoaderItem
from dataset.cursor import ResumableDataset
from engine.runtime.devices import Runtime


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
) -> Callable[[int, int], Iterable[LoaderItem]]:
    """What RunData.train_items is: the batches of an iteration but for its first ones."""

    def items(iteration: int, batches_done: int) -> Iterable[LoaderItem]:
        dataset.start_from(iteration, batches_done)
        return load_batches(dataset, num_workers, runtime, own_generator=own_generator)

    return items
