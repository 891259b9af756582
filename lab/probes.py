"""Leak probes of a checkpoint or of an architecture: of the model, of the batches, and of both by learning nonsense."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from dataset.common import IGNORE_LABEL_ID, text_metadata
from engine.build import puzzles as build
from engine.build import text as build_text
from engine.checkpoints.load import load_averaged, load_checkpoint
from engine.config.check import check
from engine.config.compose import composed
from engine.config.schema import InstructConfig
from engine.entry import user_errors
from engine.inference import instruct_config
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.protocol import Sums, add_sums, fetched
from lab.leaks import Finding, probe_batches, probe_model

NUM_BATCHES = 20
NATS_LIMIT = 0.1  # held-out unigram and model differ by less than this if there is nothing to be learned
SMALL = ("hidden_size=64", "num_heads=2", "H_cycles=1", "L_cycles=1", "depth_curriculum=[]", "tie_embeddings=false")
QUICK = ("lr=5e-3", "lr_warmup_steps=10", "lr_min_ratio=0.2", "optimizer=adam_atan2", "gradient_accumulation_steps=1")


def report(checkpoint: str | None, overrides: Sequence[str], train_steps: int) -> int:
    """Print what every probe found; the exit code of the program."""
    findings: list[Finding] = []
    with user_errors():
        findings += probe(checkpoint, overrides, train_steps)
    for finding in findings:
        print(finding)
    return 0 if all(finding.is_clean for finding in findings) else 1


def probe(checkpoint: str | None, overrides: Sequence[str], train_steps: int) -> list[Finding]:
    """All probes; `train_steps` of 0 leaves out the one that trains."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(checkpoint, overrides, folder)
        runtime = start_runtime(config.device, False, config.seed)
        try:
            return [*_probe_as_it_is(config, checkpoint, runtime), *_probe_learning(config, runtime, train_steps)]
        finally:
            runtime.close()


def config_of(checkpoint: str | None, overrides: Sequence[str], folder: str) -> InstructConfig:
    """That of the checkpoint; else of the overrides, by default with the built-in corpus."""
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        tokenizer = [f"dataset.tokenizer_path={file}" for file in loaded.files[:1]]
        changes = [*tokenizer, "dataset.subset_size=500", "gradient_accumulation_steps=1", "global_batch_size=8"]
        return instruct_config(loaded, "cfg_pretrain_instruct", [*changes, *overrides])
    small = ("dataset.sample_size=1000", "dataset.seq_len=64", "global_batch_size=8")
    data = ("dataset.source=sample", f"dataset.data_dir={folder}", *small)
    config = check(InstructConfig, composed("cfg_pretrain_instruct", [*data, *overrides]))
    return config


def _probe_as_it_is(config: InstructConfig, checkpoint: str | None, runtime: Runtime) -> list[Finding]:
    source = build_text.build_text(config, runtime)
    head = build_text.build_text_head(config, source.metadata, runtime)
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        load_averaged(head, loaded)
    items = islice(source.data.train_items(1, 0), NUM_BATCHES)
    found = probe_model(head, head.model.config.halt_max_steps)
    return [*found, *probe_batches(batch for _, batch, _ in items)]


def _probe_learning(config: InstructConfig, runtime: Runtime, train_steps: int) -> list[Finding]:
    """Answers are shuffled over the whole corpus: nothing but the frequency of tokens can be learned of them."""
    if not train_steps:
        return []
    small = config.model_dump()
    steps = min(2, int(small["arch"]["halt_max_steps"]))
    for word in (*SMALL, f"halt_max_steps={steps}", "halt_mean_steps=1.5"):
        key, _, value = word.partition("=")
        small["arch"][key] = [] if value == "[]" else value
    small |= dict(word.split("=") for word in QUICK)
    checked = check(InstructConfig, small)
    return [shuffled_answers(checked, runtime, build_text.load_text(checked, progress=False), train_steps)]


def shuffled_answers(config: InstructConfig, runtime: Runtime, corpus: Any, train_steps: int) -> Finding:
    """Nats by which a model trained on shuffled answers beats the frequencies of their tokens."""
    metadata = text_metadata(config.dataset.seq_len, corpus.tokenizer.vocab_size, corpus.tokenizer.pad_id)
    stores = [with_shuffled_answers(corpus.train, seed) for seed in (1, 2)]
    reader, held_out = (
        build_text.text_reader(config, metadata, store, runtime, is_test=is_test)
        for store, is_test in zip(stores, (False, True), strict=True)
    )
    head = build_text.build_text_head(config, metadata, runtime)
    task = build_text.text_task_of(config, head, runtime, train_steps, len(reader.rows), None)
    optimizers = build.build_optimizers(config, head, runtime, train_steps)
    step = 0
    while step < train_steps:
        for item, _ in islice(task.feed(reader), train_steps - step):
            step += 1
            task.train_step(item, step)
            optimizers.step(step)
            optimizers.zero_grad()
            task.commit()
    sums: Sums = {}
    judged = []
    for _, batch, _ in islice(held_out, NUM_BATCHES):
        add_sums(sums, task.eval_batch(batch, ())[0])
        judged.append(batch["labels"][batch["labels"] != IGNORE_LABEL_ID])
    loss = task.eval_report(fetched(sums, runtime))["token_loss"]
    unigram = unigram_loss(stores[0], torch.cat(judged).numpy())
    print(f"shuffled answers: loss {loss:.3f}, that of token frequencies {unigram:.3f}", file=sys.stderr)
    return Finding("shuffled answers cannot be learned", unigram - loss, NATS_LIMIT, unit=" nats below unigram")


def with_shuffled_answers(store: Any, seed: int) -> Any:
    """A document store whose trained tokens have changed places among all of them."""
    tokens, is_trained = store.tokens.numpy().copy(), _is_trained(store)
    tokens[is_trained] = np.random.default_rng(seed).permutation(tokens[is_trained])
    return dataclasses.replace(store, tokens=torch.from_numpy(tokens))


def _is_trained(store: Any) -> Any:
    return np.unpackbits(store.trained_bits.numpy())[: len(store.tokens)].view(np.bool_)


def unigram_loss(store: Any, judged: Any) -> float:
    """Nats a token, by the frequencies in the store; shuffling has left it the very tokens that are judged."""
    tokens = store.tokens.numpy()[_is_trained(store)].astype(np.int64)
    counts = np.bincount(tokens)
    return float(-np.log(counts[judged] / len(tokens)).mean())
