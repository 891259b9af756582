"""What the benchmarks count and time: operations, bare matrix products, seconds, peak memory."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from engine.build.puzzles import compile_step
from engine.runtime.devices import Runtime
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
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


def count_flops(step: Callable[[], Any]) -> int:
    """Floating point operations of the products and attentions of one step."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={ATTENTION: _attention_flops, ATTENTION_BACKWARD: _attention_backward_flops},
    )
    with counter:
        step()
    return int(counter.get_total_flops())


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


def measure_step(
    step: Callable[[], Any], head: ACTLossHead | TextLossHead, runtime: Runtime, rounds: int
) -> tuple[float, dict[str, Any]]:
    """Seconds of a training step, and what is reported of it beside its bare matrix products; the fastest round counts."""
    print("counting the step's operations", file=sys.stderr)
    with ProductLog() as log:
        flops = count_flops(step)
    if runtime.use_compile:
        print("compiling", file=sys.stderr)
        compile_step(head)
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
    }


def product_rate(products: Counter[Product], runtime: Runtime) -> float:
    """FLOP/s of bare matrix products in the very shapes, layouts and proportions of a step."""
    flops = seconds = 0.0
    for product, count in products.items():
        left, right = (
            torch.empty_strided(shape, stride, dtype=product.dtype, device=runtime.device).normal_()
            for shape, stride in (product.left, product.right)
        )
        torch.matmul(left, right)  # warms up
        times: list[float] = []
        with timed(times, runtime):
            torch.matmul(left, right)
        seconds += count * times[0]
        flops += count * product.flops
    return flops / seconds


@contextmanager
def timed(times: list[float], runtime: Runtime) -> Iterator[None]:
    """Add to `times` the seconds until the device has done all that is started inside."""
    runtime.synchronize()
    started = time.perf_counter()
    yield
    runtime.synchronize()
    times.append(time.perf_counter() - started)


def peak_memory(runtime: Runtime) -> int:
    """Peak bytes: allocated on CUDA, resident otherwise."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
