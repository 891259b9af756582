"""Measures text on this machine: optimizer steps with and without packing and chunks, and the loading of a corpus."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.common import text_metadata
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder, EncodedDocuments
from dataset.tokenization.protocol import Tokenizer
from engine.build import puzzles as build
from engine.build import text as build_text
from engine.build.corpus import corpus_texts, load_text
from engine.config.text import InstructConfig
from engine.runtime.devices import Runtime, start_runtime
from engine.train.speed import num_tokens
from lab.bench.measure import measure_step, peak_memory

# Lengths like those of an instruction corpus: half of the records below 145 tokens, a mean of 250, answers of 45.
MEDIAN_LENGTH, LOG_SPREAD, MEAN_ANSWER = 145, 1.04, 45


def bench_text(
    config: InstructConfig, vocab_size: int, depth: int, steps: int, compare: bool, profile: Path | None = None
) -> dict[str, Any]:
    """Whole optimizer steps on synthetic conversations; with `compare` also without packing and chunked head."""
    runtime = start_runtime(config.device, config.compile, config.seed)
    result = _measure(config, runtime, vocab_size, depth, steps, profile)
    if compare:
        plain = config.model_copy(deep=True)
        plain.dataset.packing, plain.loss.chunked = False, False
        result["plain"] = _measure(plain, runtime, vocab_size, depth, steps)
        result["speedup"] = round(result["real_tokens_per_s"] / result["plain"]["real_tokens_per_s"], 2)
    return result


def _measure(
    config: InstructConfig, runtime: Runtime, vocab_size: int, depth: int, steps: int, profile: Path | None = None
) -> dict[str, Any]:
    print(f"timing packing={config.dataset.packing}, chunked={config.loss.chunked}", file=sys.stderr)
    metadata = text_metadata(config.dataset.seq_len, vocab_size, pad_id=0)
    documents = synthetic_documents(synthetic_lengths(config), vocab_size, config.seed)
    reader = build_text.text_reader(config, metadata, [documents], runtime, "train")
    head = build_text.build_text_head(config, metadata, runtime)
    head.model.config.halt_policy, head.model.config.halt_max_steps = "fixed", depth
    task = build_text.text_task_of(config, head, runtime, total_steps=1, total_rows=1, piece_bytes=None)
    optimizers = build.build_optimizers(config, head, runtime, total_steps=1)
    item = next(iter(reader))
    real_tokens = num_tokens(item[1])

    def step() -> None:
        task.train_step(item, 1)
        optimizers.step(1)
        optimizers.zero_grad()

    task.start_step(1)
    seconds, measured = measure_step(step, task.flops(item), head, runtime, steps, profile, config.attention)
    return {
        "arch": config.arch.name,
        "device": str(runtime.device),
        "compile": runtime.use_compile,
        "attention": "flex" if head.model.inner.masks_in_blocks else "sdpa",
        "dtype": config.arch.options.get("forward_dtype"),
        "rows": config.global_batch_size,
        "seq_len": config.dataset.seq_len,
        "vocab_size": vocab_size,
        "supervision_steps": depth,
        "passes": task.micro_batches,
        "real_tokens": real_tokens,
        "real_tokens_per_s": round(real_tokens / seconds, 1),
        **measured,
    }


def synthetic_documents(lengths: NDArray[np.int64], vocab_size: int, seed: int) -> DocumentStore:
    """Random tokens in documents of these lengths, each ending in an answer that is trained."""
    rng = np.random.default_rng(seed)
    sizes = lengths + 1  # the last token of a document is only ever a label
    ends = np.repeat(np.cumsum(sizes), sizes)
    store = DocumentStoreBuilder(vocab_size)
    tokens = rng.integers(3, vocab_size, size=int(sizes.sum()), dtype=np.int32)
    store.extend(EncodedDocuments(tokens, ends - np.arange(len(tokens)) <= MEAN_ANSWER, sizes))
    return store.build()


def synthetic_lengths(config: InstructConfig) -> NDArray[np.int64]:
    """Enough document lengths to fill one batch of packed rows."""
    rng = np.random.default_rng(config.seed)
    count = 8 * config.global_batch_size
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), LOG_SPREAD, size=count)).astype(int)
    return np.clip(lengths, 16, config.dataset.seq_len)


def bench_load(config: InstructConfig) -> dict[str, Any]:
    """Load a corpus, and for some seconds encode its messages the plain way: one after the other, in one process."""
    started = time.perf_counter()
    corpus = load_text(config, progress=True)
    seconds = time.perf_counter() - started
    peak = peak_memory(Runtime(torch.device("cpu"), 0, 1, False))
    plain_records, plain_seconds = encode_plainly(config, corpus.tokenizer, seconds=5.0)
    rate, plain_rate = corpus.report.records / seconds, plain_records / plain_seconds
    return {
        "records": corpus.report.records,
        "tokens": corpus.report.total.tokens,
        "seconds": round(seconds, 2),
        "records_per_s": round(rate),
        "plain_records_per_s": round(plain_rate),
        "speedup": round(rate / plain_rate, 2),
        "peak_memory_bytes": peak,
    }


def encode_plainly(config: InstructConfig, tokenizer: Tokenizer, seconds: float) -> tuple[int, float]:
    """Encode message after message in one process for so long; returns the number of records and the seconds."""
    records, spent = 0, 0.0
    for messages in corpus_texts(config):
        started = time.perf_counter()
        for message in messages:
            tokenizer.encode(message)
        spent += time.perf_counter() - started
        records += 1
        if spent > seconds:
            break
    return records, spent
