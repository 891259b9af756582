"""How the next token is chosen from logits; pure functions, and every row has its own random numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.generate.options import SamplingOptions
from engine.runtime.devices import to_device

COLDEST = 1e-6  # colder is as good as greedy, and dividing by it could overflow


def marked(texts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Which ids (B, V) each text holds."""
    marks = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row, text in zip(marks, texts, strict=True):
        row[list(text)] = True
    return marks


def choose(
    logits: Tensor, sampling: SamplingOptions, said: Tensor | None, noise_of: Sequence[torch.Generator]
) -> Tensor:
    """The next id of every row (B,), from logits (B, V); `said` (B, V) marks the ids so far, for the penalty.

    Adding Gumbel noise and taking the largest is sampling, and a difference in the last bit of a logit, as batches of
    other sizes make it, hardly ever changes the choice.
    """
    logits = filtered_logits(logits, sampling, said)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    uniform = torch.stack([torch.rand(logits.shape[1], generator=noise) for noise in noise_of])
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))
    return (logits + to_device(gumbel, logits.device)).argmax(-1)


def filtered_logits(logits: Tensor, sampling: SamplingOptions, said: Tensor | None) -> Tensor:
    """Logits after penalty, temperature, top-k, top-p and min-p, in this order; what a filter drops is -inf."""
    if sampling.repetition_penalty != 1.0:
        assert said is not None
        logits = penalised(logits, said, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    logits = logits / max(sampling.temperature, COLDEST)
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = min_p(logits, sampling.min_p)
    return logits


def penalised(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Repeated tokens become less likely: positive logits are divided by the penalty, negative ones multiplied."""
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(said, changed, logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k likeliest, and those that tie with the last of them."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Only the likeliest that together reach the probability p; at least one."""
    ordered, places = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    is_beyond = probabilities.cumsum(-1) - probabilities >= p
    is_beyond[:, 0] = False
    return logits.masked_fill(torch.zeros_like(is_beyond).scatter(1, places, is_beyond), float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens at least p times as likely as the likeliest."""
    least = logits.max(-1, keepdim=True).values + torch.log(torch.tensor(p))
    return logits.masked_fill(logits < least, float("-inf"))
