"""What is told of a position, from the whole distribution at it: the likeliest ids, drawn ones, or all.

S positions, V vocabulary, K ids that are told.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses.distill import NO_MASS, UNUSED
from src.distillation.targets.signal import TeacherFacts, TeacherSignal


@dataclass(frozen=True)
class Answers:
    logprobs: Tensor  # (S, K), or (S, V) where all is told
    ids: Tensor | None = None  # (S, K)
    shares: Tensor | None = None


def likeliest(logprobs: Tensor, k: int) -> Answers:
    top = logprobs.topk(k, dim=-1)
    return Answers(top.values, top.indices.to(torch.int32))


def drawn(logprobs: Tensor, k: int, offsets: Tensor) -> Answers:
    """k systematic draws: the points (offset + i) / k, i from 0, each draw the id whose part of [0, 1) it falls into.

    With offsets (S,) that are uniform over [0, 1) every id is drawn k times its probability on average, as with
    independent draws; and its share is never further than 1/k from that, which those do not give.
    """
    # Sums of many small float32 numbers are off by more than those numbers; MPS has nothing wider.
    wide = torch.float32 if logprobs.device.type == "mps" else torch.float64
    reached = logprobs.to(wide).exp_().cumsum(-1)
    steps = torch.arange(k, dtype=wide, device=logprobs.device)
    points = (steps + offsets.to(wide)[:, None]) / k * reached[:, -1:]
    ids = torch.searchsorted(reached, points, right=True).clamp_(max=logprobs.shape[-1] - 1)  # (S, k), ascending

    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    slots = is_new.cumsum(-1) - 1
    counts = torch.zeros_like(logprobs[:, :k]).scatter_add_(-1, slots, torch.ones_like(points, dtype=logprobs.dtype))
    told = torch.full_like(ids, UNUSED).scatter_(-1, slots, ids)
    values = logprobs.gather(-1, told.clamp(min=0)).masked_fill_(told == UNUSED, NO_MASS)
    return Answers(values, told.to(torch.int32), counts / k)


def offsets_of(seed: int, row_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """A number of [0, 1) for every position of every row; the same row gets the same ones in whatever batch."""
    state = np.full(row_ids.shape, seed % 2**64, dtype=np.uint64)
    for value in (row_ids, positions):
        state = _scramble(_scramble(state) ^ value.astype(np.uint64))
    return (state >> np.uint64(40)).astype(np.float32) / np.float32(2**24)  # all float32 can tell apart


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The mixing function of SplitMix64: every bit of the result depends on every bit of the state."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def blank_signal(facts: TeacherFacts, valid: Tensor) -> TeacherSignal:
    """Says nothing at any position yet; where all ids are told of, that all are equally likely."""
    shape, device = valid.shape, valid.device
    is_dense = facts.kind == "dense"

    def slots(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((*shape, facts.k), value, dtype=dtype, device=device)

    return TeacherSignal(
        logprobs=slots(-float(np.log(facts.vocab_size)) if is_dense else NO_MASS, torch.float32),
        log_norms=torch.zeros((*shape, len(facts.temperatures)), device=device),
        valid=valid,
        ids=None if is_dense else slots(UNUSED, torch.int32),
        shares=slots(0, torch.float32) if facts.kind == "sampled" else None,
    )


def put_answers(told: TeacherSignal, places: Tensor, answers: Answers, log_norms: Tensor) -> None:
    """Fill in what is told of `places` (S,) of the flattened batch."""
    told.log_norms.flatten(0, 1)[places] = log_norms
    for target, value in (
        (told.logprobs, answers.logprobs),
        (told.ids, answers.ids),
        (told.shares, answers.shares),
    ):
        if target is not None and value is not None:
            target.flatten(0, 1)[places] = value
