"""What the training loop asks of anything that can be trained; batches in parts, and metrics as sums."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dataset.common import Batch, LoaderItem
from engine.runtime.devices import Runtime
from engine.runtime.signals import CutShortError, StopSignal
from engine.runtime.transfer import to_host

SAME_RUN = "Resume with the global_batch_size, the data and the options of arch that the run began with."
T = TypeVar("T")
Sums = dict[str, Tensor]  # metrics as sums over rows, `count` among them; they add over ranks and batches


class Task(Protocol):
    """Owns a model and everything that lasts from one step to the next, but no optimizer.

    Unless a task says otherwise, every item of the loader is one optimizer step, after which nothing lasts.
    """

    micro_batches: int = 1  # passes through the model that an item is split into
    passes_from: str = ""  # where that number comes from, where it is chosen for the user
    stop: StopSignal | None = None  # looked at between micro-batches

    @property
    def module(self) -> nn.Module:
        """What is trained and saved."""

    def until_stopped(self, parts: Iterable[T]) -> Iterator[T]:
        """The micro-batches of a step, until a signal asks to stop."""
        for part in parts:
            if self.stop is not None and self.stop.requested:
                raise CutShortError("the step")
            yield part

    def take_smaller_passes(self, item: LoaderItem) -> bool:
        """Split steps into smaller passes from now on, which changes no update; False where that cannot be done."""
        return False

    def feed(self, items: Iterable[LoaderItem]) -> Iterator[tuple[LoaderItem, int]]:
        """What each optimizer step works on, and how many items of the loader were opened for it."""
        return ((item, 1) for item in items)

    def schedule_step(self, step: int) -> float:
        """Where in the learning rate schedule this optimizer step is."""
        return step

    def prepare(self, item: LoaderItem) -> None:
        """Do what a step on this item needs of the host, and send it to the device, while that is busy with the step
        before; `train_step` does it by itself for an item that has not been prepared."""
        return

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        """Forward and backward of one global batch; leaves the gradients of its mean in the module.

        Raises CutShortError between two micro-batches if a signal asks to stop.
        """

    def start_step(self, step: int) -> int:
        """Set the model up for an optimizer step, as `train_step` does; returns its number of supervision steps."""
        return 1

    def observe(self, step: int, sums: Sums, grad_norm: float) -> None:
        """What the step's one wait has brought: this rank's sums, on the host, and the norm of the network's gradient.

        What a task sees here can shape the learning rate of the step; it may add to the sums and take from them.
        """
        return

    def commit(self) -> None:
        """The optimizer has used the step."""
        return

    def discard(self) -> int:
        """The step was not finite and moved no weight: free what lasts of rows that are not finite, so that they do not
        spoil the next step too; returns how many they are, over all ranks."""
        return 0

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        """Sums and wanted outputs of one batch, from a fresh start."""

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        """The numbers to log of a training step."""

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        """The numbers to report of a set."""

    def eval_metrics(self) -> Collection[str]:
        """The names of those numbers, known ahead; none if they are not."""
        return ()

    @property
    def product_dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.float32

    def flops(self, item: LoaderItem) -> float:
        """Operations of this rank's matrix products in the step, started last, that is made of the item; 0: not known."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


def check_shapes(saved: Any, fresh: Any, name: str = "the carry") -> None:
    """Refuse a state of a checkpoint that is not made like the one which this run's batches begin with."""
    if is_dataclass(saved) or hasattr(saved, "_asdict"):
        saved, fresh = (dict(vars(each)) if is_dataclass(each) else each._asdict() for each in (saved, fresh))
    if isinstance(saved, dict):
        if saved.keys() != fresh.keys():
            raise ValueError(f"{name} has {sorted(map(str, saved))}, expected {sorted(fresh)}. {SAME_RUN}")
        for key, value in saved.items():
            check_shapes(value, fresh[key], f"{name}.{key}")
    elif not isinstance(saved, Tensor) or saved.shape != fresh.shape or not same_kind(saved.dtype, fresh.dtype):
        found = f"{tuple(saved.shape)} of {saved.dtype}" if isinstance(saved, Tensor) else type(saved).__name__
        expected = f"{tuple(fresh.shape)} of {fresh.dtype}"
        raise ValueError(f"The checkpoint has {found} as {name}, this run {expected}. {SAME_RUN}")


def same_kind(one: torch.dtype, other: torch.dtype) -> bool:
    return one == other or {one, other} <= {torch.float32, torch.bfloat16, torch.float16}


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """Equal parts of the rows, in order."""
    if parts == 1:
        return [batch]
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in chunks.items()} for i in range(parts)]


def finite_rows(*tensors: Tensor) -> Tensor:
    """Which rows (B,) hold finite numbers alone, in all of the tensors."""
    return torch.stack([tensor.isfinite().flatten(1).all(1) for tensor in tensors]).all(0)


def add_sums(totals: Sums, sums: Sums) -> None:
    """Add sums to totals, in float64 so that a long evaluation loses nothing."""
    for name, value in sums.items():
        wide = value.detach().to(torch.float64 if value.device.type != "mps" else torch.float32)
        totals[name] = totals[name] + wide if name in totals else wide


def fetched(sums: Sums, runtime: Runtime) -> dict[str, Any]:
    """Sums over all ranks as plain numbers (lists where a sum has several), in one transfer from the device."""
    return over_ranks(dict(zip(sums, to_host(*sums.values()), strict=True)), runtime)


def over_ranks(sums: Sums, runtime: Runtime) -> dict[str, Any]:
    """Sums that are on the host, over all ranks as plain numbers; every rank has the same names."""
    if not sums or runtime.world_size == 1:
        return {name: value.tolist() for name, value in sums.items()}
    names = sorted(sums)
    flat = torch.cat([sums[name].reshape(-1) for name in names])
    runtime.all_reduce_sum_([flat])
    parts = flat.split([sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape).tolist() for name, part in zip(names, parts, strict=True)}
