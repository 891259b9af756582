"""How fast a run is: tokens a second, and the share it reaches of the speed of this machine's bare matrix products."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dataset.common import Batch, LoaderItem
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Task

PRODUCT_SIZE = {"cpu": 512, "mps": 2048, "cuda": 8192}  # large enough for full speed, done in milliseconds
TRIES = 5
SLOW_STEP_SECONDS = 20.0


class Speedometer:
    """Counts what the run gets done between two readings."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.matmul_rates: dict[torch.dtype, float] = {}
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: the time since then was spent on something else than training."""
        self.started, self.tokens, self.flops, self.dtype = time.monotonic(), 0, 0.0, torch.float32

    def add(self, batch: Batch, flops: float, dtype: torch.dtype) -> None:
        """This rank has trained on a batch, which took so many operations; 0: not known."""
        self.tokens += num_tokens(batch)
        self.flops += flops
        self.dtype = dtype

    def read(self) -> dict[str, float]:
        """What was reached since the last reading, over all ranks; nothing where nothing was counted."""
        seconds = time.monotonic() - self.started
        found: dict[str, float] = {}
        if self.tokens and seconds > 0:
            found["perf/tokens_per_second"] = self.tokens * self.runtime.world_size / seconds
            if self.flops:
                if self.dtype not in self.matmul_rates:
                    self.matmul_rates[self.dtype] = matmul_rate(self.runtime, self.dtype)
                found["perf/matmul_share"] = self.flops / seconds / self.matmul_rates[self.dtype]
        self.restart()
        return found


def expectation(task: Task, item: LoaderItem, step: int, runtime: Runtime, smaller: str) -> str:
    """What to say before a first step that may take long: its size, and its seconds if it were matrix products alone.

    `smaller` names what makes steps quicker.
    """
    passes, positions = task.micro_batches, item[1]["inputs"].numel()
    chosen = f" ({task.passes_from})" if task.passes_from else ""
    said = f"a step: {passes} x {positions // passes:,} tokens{chosen}"
    task.start_step(step)
    flops = task.flops(item)
    if not flops:
        return said
    seconds = flops / matmul_rate(runtime, task.product_dtype)
    said += f", at least {seconds:.2g} s by the speed of this machine's matrix products"
    is_slow = runtime.device.type == "cpu" and seconds > SLOW_STEP_SECONDS
    return f"{said}. That is long on a CPU: take {smaller}" if is_slow else said


def num_tokens(batch: Batch) -> int:
    """Positions of a batch that hold something."""
    documents = batch.get("documents")
    return batch["inputs"].numel() if documents is None else int((documents >= 0).sum())


def matmul_rate(runtime: Runtime, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this rank's device, the best of a few tries."""
    size = PRODUCT_SIZE[runtime.device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=runtime.device) for _ in range(2))
    return 2 * size**3 / min(product_seconds(left, right, runtime) for _ in range(TRIES))


def product_seconds(left: Tensor, right: Tensor, runtime: Runtime) -> float:
    """Seconds of a matrix product, once it has been warmed up."""
    torch.matmul(left, right)
    times: list[float] = []
    with timed(times, runtime):
        torch.matmul(left, right)
    return times[0]


@contextmanager
def timed(times: list[float], runtime: Runtime) -> Iterator[None]:
    """Add to `times` the seconds until the device has done all that is started inside."""
    runtime.synchronize()
    started = time.perf_counter()
    yield
    runtime.synchronize()
    times.append(time.perf_counter() - started)
