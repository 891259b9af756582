"""Made-up conversations whose documents can be told apart, tiny models for them, and ranks as threads."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from dataset.common import Batch
from dataset.cursor import CursorConfig, RowDataset
from dataset.text.packing import DocumentRows
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder, EncodedDocuments
from engine.config.registry import load_model_class
from engine.runtime.devices import Runtime
from models.losses.text import TextLossHead
from tests.tiny import CPU

Result = TypeVar("Result")
ONE_AT_A_TIME = threading.Lock()

BASE, VOCAB, LENGTH = 16, 40, 16  # the first two tokens of a document are its number in this base
ARCHS = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "trm_singlez": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "recursive_reasoning.transformers_baseline@Model_ACTV2",
}


def make_store(count: int, seed: int = 0) -> DocumentStore:
    """Documents of 4 to 12 tokens: their number, something asked, and an answer of 1 to 5 tokens."""
    rng = np.random.default_rng(seed)
    builder = DocumentStoreBuilder(VOCAB)
    for number in range(count):
        prompt, answer = rng.integers(1, 6), rng.integers(1, 6)
        ids = np.concatenate([divmod(number, BASE), rng.integers(BASE, VOCAB, size=prompt + answer)]).astype(np.int32)
        builder.extend(EncodedDocuments(ids, np.arange(len(ids)) >= 2 + prompt, np.array([len(ids)])))
    return builder.build()


def make_reader(store: DocumentStore, rows: int, *, packing: bool = True, **options: Any) -> RowDataset:
    config = CursorConfig(global_batch_size=rows, **options)
    return RowDataset(DocumentRows(store, LENGTH, 0, packing), config, "test" if config.is_test else "train")


def make_batch(count: int, *, packing: bool, seed: int = 0) -> Batch:
    """All of `count` documents in one batch."""
    rows = len(make_reader(make_store(count, seed), 1, packing=packing).rows)
    ((_, batch, _),) = make_reader(make_store(count, seed), rows, packing=packing, is_test=True)
    return batch


def make_head(arch: str = "trm", *, chunked: bool = True, loss_type: str = "softmax_cross_entropy", **options: Any):
    """A tiny model for text; its halting head is not at its zeros."""
    config = {
        **{"seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": 32, "num_heads": 2, "expansion": 1},
        **{"H_layers": 1, "L_layers": 1, "H_cycles": 2, "L_cycles": 1, "halt_max_steps": 3, "halt_policy": "fixed"},
        **{"causal": True, "recursion": "unrolled", "norm": "pre", "grad_cycles": "all", "supervise": "cycle"},
        **{"forward_dtype": "float32"},
    }
    with ONE_AT_A_TIME:  # all threads share torch's generator
        torch.manual_seed(1)
        head = TextLossHead(load_model_class(ARCHS[arch])(config | options), loss_type, chunked=chunked)
        torch.nn.init.normal_(head.model.inner.q_head.weight)
        torch.nn.init.zeros_(head.model.inner.q_head.bias)
    return head


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def document_numbers(batch: Batch) -> Counter[int]:
    """Which documents stand in a batch."""
    starts = ((batch["positions"] == 0) & (batch["documents"] >= 0)).nonzero().tolist()
    inputs = batch["inputs"]
    return Counter(int(inputs[row, place]) * BASE + int(inputs[row, place + 1]) for row, place in starts)


@dataclass
class Meeting:
    """Where the threads that stand for ranks exchange what they hold."""

    ranks: int
    held: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.held[rank] = value
        self.barrier.wait()
        found = [self.held[other] for other in range(self.ranks)]
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class ThreadRuntime(Runtime):
    """A rank that is a thread; the collectives are those of Runtime."""

    meeting: Meeting = None  # type: ignore[assignment]

    def all_reduce_sum_(self, tensors):
        of_ranks = self.meeting.exchange(self.rank, [tensor.clone() for tensor in tensors])
        for tensor, *parts in zip(tensors, *of_ranks, strict=True):
            tensor.copy_(torch.stack(parts).sum(0))

    def broadcast_(self, tensors):
        first = self.meeting.exchange(self.rank, [tensor.detach().clone() for tensor in tensors])[0]
        for tensor, value in zip(tensors, first, strict=True):
            tensor.data.copy_(value)

    def all_gather_rows(self, tensor):
        return torch.cat(self.meeting.exchange(self.rank, tensor.clone()))

    def largest(self, vote):
        return max(self.meeting.exchange(self.rank, vote))


def on_ranks(ranks: int, work: Callable[[Runtime], Result]) -> list[Result]:
    """What `work` returns on each rank; one rank runs as it is."""
    if ranks == 1:
        return [work(CPU)]
    meeting = Meeting(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(work, ThreadRuntime(CPU.device, rank, ranks, False, meeting)) for rank in range(ranks)]
        for future in futures:  # a rank that fails must not leave the others waiting
            future.add_done_callback(lambda done: done.exception() and meeting.barrier.abort())
        wait(futures)
    faults = [future.exception() for future in futures if future.exception()]
    for fault in sorted(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError)):
        raise fault
    return [future.result() for future in futures]
