"""Measures generation on this machine: tokens per second of every way to decode, their memory, time along a text."""

import statistics
import sys
from collections.abc import Iterator
from typing import Any

import torch

from dataset.common import text_metadata
from engine.build import text as build_text
from engine.config.text import InstructConfig
from engine.generate.batch import Token
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, Mode
from engine.runtime.devices import Runtime, start_runtime
from engine.train.speed import timed
from models.act import ActModel
from models.kv_cache import KeyValueMemory, cast_for_reading

ORACLE_TOKENS = 3  # recomputing takes seconds a token; so many, in the middle of the text, are timed
SPREAD = (64, 448)  # positions between which the time of a token is compared
FEW_TOKENS = 12  # timed at each of them


def bench_generate(
    config: InstructConfig, vocab_size: int, prompt: int, new_tokens: int, depth: int, batch_sizes: list[int]
) -> dict[str, Any]:
    """Greedy decoding of a fresh model after random prompts; all ways in one run."""
    runtime = start_runtime(config.device, config.compile, config.seed)
    metadata = text_metadata(config.dataset.seq_len, vocab_size, pad_id=0)
    model = build_text.build_text_head(config, metadata, runtime).model
    cast_for_reading(model)
    result: dict[str, Any] = {
        "arch": config.arch.name,
        "device": str(runtime.device),
        "compile": runtime.use_compile,
        "dtype": model.config.forward_dtype,
        "hidden_size": model.config.hidden_size,
        "prompt": prompt,
        "new_tokens": new_tokens,
        "depth": depth,
        "batch": {},
    }
    for rows in batch_sizes:
        print(f"timing {rows} rows", file=sys.stderr)
        result["batch"][rows] = compare(model, runtime, rows, prompt, new_tokens, depth)
    early, late = SPREAD
    if model.config.seq_len >= late + FEW_TOKENS:
        times = [statistics.median(seconds(model, runtime, 1, at, FEW_TOKENS, depth, "exact")) for at in SPREAD]
        result["ms_per_token_at"] = {early: round(1000 * times[0], 2), late: round(1000 * times[1], 2)}
        result["growth"] = round(times[1] / times[0], 2)
    deepest = model.config.halt_max_steps
    print(f"timing {deepest} supervision steps", file=sys.stderr)
    full = statistics.median(seconds(model, runtime, 1, prompt, FEW_TOKENS, deepest, "exact"))
    result["full_depth"] = {"depth": deepest, "seconds_per_token": round(full, 4)}
    return result


def compare(model: ActModel, runtime: Runtime, rows: int, prompt: int, new: int, depth: int) -> dict[str, Any]:
    """Tokens per second with the cache, and without it over a few tokens in the middle of the same text."""
    times = seconds(model, runtime, rows, prompt, new, depth, "exact")
    speed = round(rows * len(times) / sum(times), 2)
    middle = prompt + (new - ORACLE_TOKENS) // 2
    times = seconds(model, runtime, rows, middle, ORACLE_TOKENS, depth, "recompute")
    without = round(rows * len(times) / sum(times), 3)
    return {
        "exact": {
            "tokens_per_s": speed,
            "bytes_per_token": KeyValueMemory(model, rows, 1, depth).bytes_per_token,
            "times_recompute": round(speed / without, 1),
        },
        "recompute": {"tokens_per_s": without, "timed_tokens": len(times)},
    }


def seconds(model: ActModel, runtime: Runtime, rows: int, prompt: int, new: int, depth: int, mode: Mode) -> list[float]:
    """Of each token behind the prompt; reading the prompt, which yields the first one, is not among them."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    prompts = torch.randint(3, vocab_size, (rows, prompt), generator=generator).tolist()
    options = DecodeOptions(mode=mode, depth=depth, compile=runtime.use_compile and mode == "exact")

    def decoding() -> Iterator[list[Token]]:
        tokens = iter(Decoding(model, prompts, options, max_new_tokens=new + 1))
        next(tokens)
        return tokens

    if options.compile:  # the first reply compiles
        next(decoding())
    tokens = decoding()
    times: list[float] = []
    for _ in range(new):
        with timed(times, runtime):
            next(tokens)
    return times
