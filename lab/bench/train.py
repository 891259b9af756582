"""Measures this machine on this project's own work: training steps against the matrix products they consist of."""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from engine.build import puzzles as build
from engine.config.schema import PretrainConfig
from engine.runtime.devices import Runtime, start_runtime

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


def product_rate(products: Counter[Product], runtime: Runtime, rounds: int = 3) -> float:
    """FLOP/s of bare matrix products in the very shapes, layouts and proportions of a step."""
    flops = seconds = 0.0
    for product, times in products.items():
        left, right = (
            torch.empty_strided(shape, stride, dtype=product.dtype, device=runtime.device).normal_()
            for shape, stride in (product.left, product.right)
        )
        multiply = torch.bmm if left.ndim == 3 else torch.mm
        seconds += times * best_seconds(lambda a=left, b=right, f=multiply: f(a, b), runtime, rounds)  # type: ignore[misc]
        flops += times * product.flops
    return flops / seconds


def best_seconds(action: Callable[[], Any], runtime: Runtime, rounds: int) -> float:
    """The fastest of some rounds, after one to warm up: what is left when nobody else wants the machine."""
    action()
    runtime.synchronize()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        runtime.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def bench_train(config: PretrainConfig, *, positions: int, vocab_size: int, steps: int) -> dict[str, Any]:
    """Forward and backward of one supervision step on random rows, beside the machine's matrix products."""
    runtime = start_runtime(config.device, config.compile, config.seed)
    rows = config.global_batch_size
    facts = _facts_for(config, positions, vocab_size)
    head = build.build_model(config.arch, facts, rows, runtime).train()
    seq_len = facts.seq_len
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(1, vocab_size, (2, rows, seq_len), generator=generator, dtype=torch.int32)
    batch = runtime.to_device(
        {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32)}
    )
    carry = head.initial_carry(batch)

    def step() -> Tensor:
        nonlocal carry
        carry, loss, *_ = head(return_keys=(), carry=carry, batch=batch)
        (loss / rows).backward()
        head.zero_grad(set_to_none=True)
        if head.model.puzzle_emb is not None:
            head.model.puzzle_emb.lent.clear()
        return loss

    print("counting the step's operations", file=sys.stderr)
    flops = count_flops(step)
    log = ProductLog()
    with log:
        step()
    if runtime.use_compile:
        print("compiling", file=sys.stderr)
        build.compile_step(head)
        step()
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    print(f"timing {steps} steps and the bare products, in turns", file=sys.stderr)
    seconds, rates = [], []
    for _ in range(steps):
        seconds.append(best_seconds(step, runtime, rounds=1))
        rates.append(product_rate(log.products, runtime, rounds=1))
    best, rate = min(seconds), max(rates)
    return {
        "arch": config.arch.name,
        "device": str(runtime.device),
        "compile": runtime.use_compile,
        "rows": rows,
        "positions": positions,
        "dtype": config.arch.options.get("forward_dtype"),
        "seconds_per_step": round(best, 4),
        "steps_per_s": round(1 / best, 3),
        "examples_per_s": round(rows / best, 1),
        "positions_per_s": round(rows * positions / best),
        "flops_per_step": flops,
        "achieved_flops_per_s": round(flops / best),
        "matmul_flops_per_s": round(rate),
        "ratio": round(flops / best / rate, 3),
        "peak_memory_bytes": peak_memory(runtime),
    }


def _facts_for(config: PretrainConfig, positions: int, vocab_size: int) -> Any:
    """Metadata of a data set whose rows fill so many positions, puzzle prefix included."""
    from dataset.common import PuzzleDatasetMetadata

    options = config.arch.options
    needed = math.ceil(options.get("puzzle_emb_ndim", 0) / options["hidden_size"])
    prefix = options.get("puzzle_emb_len") or needed
    if positions <= prefix:
        raise ValueError(f"--positions {positions} leaves no room for tokens behind a puzzle prefix of {prefix}.")
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=None,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=positions - prefix,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1,
        total_puzzles=1,
        sets=["all"],
    )


def peak_memory(runtime: Runtime) -> int:
    """Peak bytes: allocated on CUDA, resident otherwise."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
