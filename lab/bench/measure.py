"""What the benchmarks count and time: operations, bare matrix products, seconds, peak memory."""

import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.build.compiling import Attention, compile_networks
from engine.runtime.devices import Runtime
from engine.train.speed import product_seconds, timed
from lab.bench.profile import profiled
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


@dataclass(frozen=True)
class Product:
    """One matrix product as the step makes it: operand shapes and memory layouts."""

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        *batch, rows, inner = self.left[0]
        return 2 * rows * inner * self.right[0][-1] * (batch[0] if batch else 1)


class ProductLog(TorchDispatchMode):
    """Counts the matrix products that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            a, b = args[-2:]
            self.products[Product((tuple(a.shape), a.stride()), (tuple(b.shape), b.stride()), a.dtype)] += 1
        return func(*args, **(kwargs or {}))


def measure_step(
    step: Callable[[], Any],
    flops: float,
    head: ACTLossHead | TextLossHead,
    runtime: Runtime,
    rounds: int,
    profile: Path | None = None,
    attention: Attention = "sdpa",
) -> tuple[float, dict[str, Any]]:
    """Seconds of a training step of so many operations, and what is reported of it beside its bare matrix products; the
    fastest round counts. With `profile` a trace of one more step is written there."""
    print("noting the step's matrix products", file=sys.stderr)
    with ProductLog() as log:
        step()
    if runtime.use_compile:
        print("compiling", file=sys.stderr)
        compile_networks(head, runtime, attention)
        step()
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    print(f"timing {rounds} steps and the bare products, in turns", file=sys.stderr)
    times: list[float] = []
    rates = []
    for _ in range(rounds):
        step()  # warms up
        with timed(times, runtime):
            step()
        rates.append(product_rate(log.products, runtime))
    seconds, rate = min(times), max(rates)
    return seconds, {
        "seconds_per_step": round(seconds, 4),
        "flops_per_step": flops,
        "achieved_flops_per_s": round(flops / seconds),
        "matmul_flops_per_s": round(rate),
        "ratio": round(flops / seconds / rate, 3),
        "peak_memory_bytes": peak_memory(runtime),
        **({} if profile is None else {"kernels": profiled(step, runtime, profile)}),
    }


def product_rate(products: Counter[Product], runtime: Runtime) -> float:
    """FLOP/s of bare matrix products in the very shapes, layouts and proportions of a step."""
    flops = seconds = 0.0
    for product, count in products.items():
        left, right = (filled(shape, stride, product.dtype, runtime) for shape, stride in (product.left, product.right))
        seconds += count * product_seconds(left, right, runtime)
        flops += count * product.flops
    return flops / seconds


def filled(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, runtime: Runtime) -> Tensor:
    """Random numbers laid out so; an expanded operand has a stride of 0, so the storage is filled, not the view."""
    size = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    return torch.randn(size, dtype=dtype, device=runtime.device).as_strided(shape, stride)


def peak_memory(runtime: Runtime) -> int:
    """Peak bytes: allocated on CUDA, resident otherwise."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
