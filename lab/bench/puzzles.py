"""Times one training step of a puzzle model against the bare matrix products that it consists of."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.common import text_metadata
from engine.build import puzzles as build
from engine.config.schema import PretrainConfig
from engine.runtime.devices import start_runtime
from lab.bench.measure import measure_step
from models.flops import training_flops


def bench_puzzles(
    config: PretrainConfig, positions: int, vocab_size: int, steps: int, profile: Path | None = None
) -> dict[str, Any]:
    """Forward and backward of one supervision step on random rows, beside the machine's matrix products."""
    runtime = start_runtime(config.device, config.compile, config.seed)
    rows = config.global_batch_size
    options = config.arch.options
    prefix = options.get("puzzle_emb_len") or math.ceil(options.get("puzzle_emb_ndim", 0) / options["hidden_size"])
    if positions <= prefix:
        raise ValueError(f"--positions {positions} leaves no room for tokens behind a puzzle prefix of {prefix}.")
    seq_len = positions - prefix
    head = build.build_model(config.arch, text_metadata(seq_len, vocab_size, pad_id=0), rows, runtime).train()
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

    flops = training_flops(head.model.inner, rows, rows * seq_len)
    seconds, measured = measure_step(step, flops, head, runtime, steps, profile)
    return {
        "arch": config.arch.name,
        "device": str(runtime.device),
        "compile": runtime.use_compile,
        "rows": rows,
        "positions": positions,
        "dtype": options.get("forward_dtype"),
        "steps_per_s": round(1 / seconds, 3),
        "examples_per_s": round(rows / seconds, 1),
        "positions_per_s": round(rows * positions / seconds),
        **measured,
    }
