"""The text half of composing: turns a checked config into conversations, model and task."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, chain
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from dataset.chat.reader import chat_splits, chat_tokenizer_folder, open_chat_data
from dataset.common import Batch, PuzzleDatasetMetadata, text_metadata
from dataset.cursor import CursorConfig, RowDataset, Stage
from dataset.text.packing import DocumentRows, fill_batch
from dataset.text.slimorca import corpus_digest
from dataset.text.token_store import Documents, DocumentStore
from dataset.tokenization.protocol import Tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer
from engine.build.corpus import corpus_config, load_for_ranks, load_text
from engine.build.loader import TrainItems, announced, load_batches, train_items
from engine.build.passes import passes_of
from engine.build.puzzles import Source, build_recursive_model, check_batch_shares
from engine.config.registry import load_model_class
from engine.config.text import ChatConfig, InstructConfig, TextConfig
from engine.runtime.devices import Runtime
from engine.tasks.persistent_text import PersistentTextTask
from engine.tasks.text import TextTask
from engine.train.loop import RunData
from models.losses.text import TextLossHead


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """Conversations; with recursion=carry `total_steps` is an estimate, which the data may exceed."""

    tokenizer: Tokenizer
    total_rows: int
    global_batch_size: int  # that asked for, or as many examples as there are


@dataclass(frozen=True)
class HeldOut:
    """Conversations one by one, rather than packed into rows."""

    store: DocumentStore
    pad_id: int

    def batch(self, documents: Sequence[int]) -> Batch:
        """One conversation a row."""
        width = int(self.store.lengths()[list(documents)].max())
        return fill_batch(self.store, [np.array([index]) for index in documents], len(documents), width, self.pad_id)


def build_text(
    config: InstructConfig,
    runtime: Runtime,
    *,
    train: bool = True,
    held_out: str = "test",
    say: Callable[[str], None] | None = None,
) -> TextSource:
    """Load, tokenize and pack the corpus; `held_out` names the split that is evaluated.

    `say` is told where one of several stages begins; without training only the first of them is loaded.
    """
    check_batch_shares(config, runtime)
    load = load_text if runtime.world_size == 1 else load_for_ranks
    corpus = load(config, progress=runtime.is_main, first_only=not train)
    if runtime.is_main:
        print(corpus.report.summary(), file=sys.stderr)
    tested = {name: corpus.test.part(documents) for name, documents in corpus.test_sets.items()}
    stages = config.dataset.stages or []

    def announce(number: int) -> None:
        count = len(corpus.stages[number])
        if say is not None:
            say(f"stage {number + 1} of {len(stages)}: {count} conversations of {stages[number].repo}")

    source = source_of(
        config,
        runtime,
        config.dataset.seq_len,
        corpus.tokenizer,
        train=[corpus.train.part(documents) for documents in corpus.stages] if train else [],
        test=tested if held_out == "test" else {held_out: corpus.train},
        announce=announce if len(stages) > 1 else None,
    )
    return replace(source, meta={"corpus": corpus_digest(corpus_config(config.dataset))})


def build_chat(config: ChatConfig, runtime: Runtime, *, train: bool = True) -> TextSource:
    """Readers of the data sets at `data_paths`, mixed, and their common tokenizer."""
    check_batch_shares(config, runtime)
    stores = {}
    for split in chat_splits(config.data_paths) or ["train"]:  # with no split at all, opening says what is missing
        stores[split], found = open_chat_data(config.data_paths, split, config.seq_len)
        if runtime.is_main:
            cut = f", {found.chat.truncated} of them truncated, {found.chat.dropped} dropped"
            print(f"{split}: {found.chat.documents} conversations{cut}; {found.chat.tokens} tokens", file=sys.stderr)
    if train and "train" not in stores:
        open_chat_data(config.data_paths, "train")
    tokenizer = load_chat_tokenizer(chat_tokenizer_folder(config.data_paths))
    trained = [stores["train"]] if train else []
    tested = {name: store for name, store in stores.items() if name == "test"}
    return source_of(config, runtime, found.seq_len, tokenizer, train=trained, test=tested)


def data_row_length(paths: Sequence[str]) -> int:
    """Positions of the longest rows of these data sets."""
    return max(open_chat_data(paths, split)[1].seq_len for split in chat_splits(paths) or ["train"])


def source_of(
    config: TextConfig,
    runtime: Runtime,
    seq_len: int,
    tokenizer: Tokenizer,
    *,
    train: Sequence[Documents],
    test: Mapping[str, Documents],
    announce: Callable[[int], None] | None = None,
) -> TextSource:
    """Readers of the documents to train on, stage after stage, and of the sets to evaluate, and how long a run takes.

    The first of the sets decides which checkpoint is the best. `announce` is told the number of a stage that begins.
    """
    metadata = text_metadata(seq_len, tokenizer.vocab_size, tokenizer.pad_id)
    if train:
        fitting = fitting_batch_size(config, runtime, min(map(len, train)))
        config = config.model_copy(update={"global_batch_size": fitting})
    trained = text_reader(config, metadata, train, runtime, "train") if train else None
    held_out = [
        text_reader(config, metadata, [found], runtime, name, is_test=True) for name, found in test.items() if found
    ]
    epochs = config.total_epochs
    stages = [trained.stages[trained.stage_of(epoch)].rows for epoch in range(epochs)] if trained is not None else []
    rows = sum(map(len, stages)) or 1
    steps = sum(map(trained.batches_of, range(epochs))) if trained is not None else 1
    if config.arch.options.get("recursion") == "carry":
        steps = max(1, round(rows * expected_depth(config.arch.options) / config.global_batch_size))

    workers = config.dataloader_workers
    items: TrainItems = (lambda *_: ()) if trained is None else train_items(trained, workers, runtime)
    if trained is not None and announce is not None:
        items = announced(items, trained, announce)
    return TextSource(
        metadata=metadata,
        data=RunData(
            train_items=items,
            eval_items=(lambda: chain(*(load_batches(rows, workers, runtime) for rows in held_out)))
            if held_out
            else None,
            num_eval_batches=sum(rows.num_batches() for rows in held_out) if held_out else None,
            eval_sets=[rows.set_name for rows in held_out],
            best_sets=[rows.set_name for rows in held_out[:1]],
            checksum=reduce(lambda sum, found: crc32(found.lengths().tobytes(), sum), [*train, *test.values()], 0),
        ),
        files=tokenizer.files(),
        tokenizer=tokenizer,
        total_steps=min(steps, config.max_steps or steps),
        total_rows=rows,
        iterations=config.iterations,
        steps_per_epoch=steps / epochs,
        batches_of=(lambda epoch: 1) if trained is None else trained.batches_of,
        train_rows=rows // epochs,
        train_tokens=sum(int(found.lengths().sum()) for found in train),
        global_batch_size=config.global_batch_size,
    )


def fitting_batch_size(config: TextConfig, runtime: Runtime, num_examples: int) -> int:
    """The batch size asked for; if there are fewer examples, the largest one that can be shared equally."""
    shares = runtime.world_size * config.gradient_accumulation_steps
    if num_examples < shares:
        raise ValueError(
            f"No train batches available: {num_examples} examples cannot be shared by {runtime.world_size} ranks x "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}. Use fewer, or {config.more_examples}."
        )
    return min(config.global_batch_size, num_examples // shares * shares)


def expected_depth(arch: dict[str, Any]) -> float:
    """Supervision steps of a row under the halting policy; how early a learned one halts is not known ahead."""
    if arch.get("halt_policy") != "sampled":
        return float(arch["halt_max_steps"])
    return float(min(arch.get("halt_mean_steps", 1.0), arch["halt_max_steps"]))


def text_reader(
    config: TextConfig,
    metadata: PuzzleDatasetMetadata,
    documents: Sequence[Documents],
    runtime: Runtime,
    set_name: str,
    *,
    is_test: bool = False,
) -> RowDataset:
    """Documents in rows, one stage after the other."""
    rows = (DocumentRows(found, metadata.seq_len, metadata.pad_id, config.rows.packing) for found in documents)
    first, *later = map(Stage, [0, *accumulate(config.stage_epochs)], rows)
    return RowDataset(
        first.rows,
        CursorConfig(
            global_batch_size=config.global_batch_size,
            is_test=is_test,
            epochs_per_iter=config.epochs_per_iteration,
            epochs=config.total_epochs,
            seed=config.seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
        ),
        set_name,
        later,
    )


def build_text_head(config: TextConfig, metadata: PuzzleDatasetMetadata, runtime: Runtime) -> TextLossHead:
    model = build_recursive_model(config.arch, metadata, config.global_batch_size // runtime.world_size)
    head_class: type[TextLossHead] = load_model_class(config.arch.loss.name)
    head = head_class(model, config.arch.loss.loss_type, chunked=config.loss.chunked).to(runtime.device)
    runtime.broadcast_([*head.parameters(), *head.buffers()])
    # Flash attention takes no table; elsewhere one costs little, and leaves padding out as well.
    model.inner.has_single_documents = not config.rows.packing and runtime.device.type == "cuda"
    return head


def build_text_task(config: TextConfig, head: TextLossHead, source: TextSource, runtime: Runtime) -> TextTask:
    sizes = [len(source.tokenizer.piece_bytes(i)) for i in range(source.tokenizer.vocab_size)]
    return text_task_of(config, head, runtime, source.total_steps, source.total_rows, torch.tensor(sizes))


def text_task_of(
    config: TextConfig,
    head: TextLossHead,
    runtime: Runtime,
    total_steps: int,
    total_rows: int,
    piece_bytes: Tensor | None,
) -> TextTask:
    passes = passes_of(config, runtime, head.model.inner)
    settings: dict[str, Any] = {
        "seed": config.seed,
        "total_steps": total_steps,
        "micro_batches": passes.number,
        "reduction": config.loss.reduction,
        "eval_steps": config.eval.halt_max_steps,
        "piece_bytes": piece_bytes,
    }
    if head.model.config.recursion == "carry":
        task: TextTask = PersistentTextTask(head, runtime, total_rows=total_rows, **settings)
    else:
        task = TextTask(head, runtime, **settings)
    task.passes_from = passes.reason
    return task
