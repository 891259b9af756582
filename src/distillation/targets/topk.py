"""What a teacher names of a whole distribution: the top k, drawn ids, or all.

S positions, V vocabulary, K ids that are named.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.common import mix_bits
from engine.runtime.devices import to_device
from models.losses.distill import NO_MASS, UNUSED
from src.distillation.targets.signal import TeacherFacts, TeacherSignal, log_norms_of


def named(logprobs: Tensor, facts: TeacherFacts, seed: int, row_ids: Tensor, positions: Tensor) -> TeacherSignal:
    """Of log-probabilities (S, V) what the facts ask for; draws follow from the seed, the row (S,) and the position,
    which are on the host."""
    ids: Tensor | None = None
    shares: Tensor | None = None
    log_norms = log_norms_of(logprobs, facts.temperatures)
    if facts.kind == "topk":
        logprobs, ids = logprobs.topk(facts.k, dim=-1)
    elif facts.kind == "sampled":
        offsets = torch.from_numpy(offsets_of(seed, row_ids.numpy(), positions.numpy()))
        logprobs, ids, shares = drawn(logprobs, facts.k, to_device(offsets, logprobs.device))
    valid = torch.ones(len(logprobs), dtype=torch.bool, device=logprobs.device)
    return TeacherSignal(logprobs, log_norms, valid, None if ids is None else ids.to(torch.int32), shares)


def drawn(logprobs: Tensor, k: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k systematic draws: the points (offset + i) / k, i from 0, each draw the id whose part of [0, 1) it falls into.

    Returns log-probabilities, ids and shares (S, k) of the distinct ids, UNUSED in the slots that are left.

    With offsets (S,) that are uniform over [0, 1) every id is drawn k times its probability on average, as with
    independent draws; and its share is never further than 1/k from that, which those do not give.
    """
    # Sums of many small float32 numbers are off by more than those numbers; MPS has nothing wider.
    wide = torch.float32 if logprobs.device.type == "mps" else torch.float64
    reached = logprobs.to(wide, copy=True).exp_().cumsum(-1)
    steps = torch.arange(k, dtype=wide, device=logprobs.device)
    points = (steps + offsets.to(wide)[:, None]) / k * reached[:, -1:]
    ids = torch.searchsorted(reached, points, right=True).clamp_(max=logprobs.shape[-1] - 1)  # (S, k), ascending

    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    slots = is_new.cumsum(-1) - 1
    counts = torch.zeros_like(logprobs[:, :k]).scatter_add_(-1, slots, torch.ones_like(points, dtype=logprobs.dtype))
    once = torch.full_like(ids, UNUSED).scatter_(-1, slots, ids)
    values = logprobs.gather(-1, once.clamp(min=0)).masked_fill_(once == UNUSED, NO_MASS)
    return values, once, counts / k


def offsets_of(seed: int, row_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """A number of [0, 1) for every position of every row; the same row gets the same ones in whatever batch."""
    state = np.full(row_ids.shape, seed % 2**64, dtype=np.uint64)
    for value in (row_ids, positions):
        state = mix_bits(mix_bits(state) ^ value.astype(np.uint64))
    return (state >> np.uint64(40)).astype(np.float32) / np.float32(2**24)  # all float32 can tell apart


def blank_signal(facts: TeacherFacts, valid: Tensor) -> TeacherSignal:
    """Says nothing at any position yet; where all ids are named, that all are equally likely."""
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
