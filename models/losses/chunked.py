"""Losses of hidden states against a large vocabulary in one pass over chunks of tokens; never tokens x vocabulary whole.

T supervised tokens, S tokens of a chunk, D hidden, V vocabulary. A chunk of logits is made, scored, turned into
gradients and forgotten.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # of float32: 128 MiB, some 1000 tokens of a 32,000-piece vocabulary


class TokenScores(NamedTuple):
    """What is known of every supervised token, without gradient."""

    losses: Tensor  # (T,) float32
    preds: Tensor  # (T,) int64


class Scorer(Protocol):
    """A loss of T tokens that is computed from their logits, chunk by chunk."""

    def slope_(self, logits: Tensor, part: slice) -> Tensor:
        """Score the tokens `part`; returns the slope (S, V) of the total along their logits, which may be overwritten."""

    def total(self) -> Tensor:
        """The loss to minimise, after all chunks."""


def chunked_loss(hidden: Tensor, head: Tensor, scorer: Scorer) -> Tensor:
    """The scorer's total, with gradient for hidden states (T, D) and head (V, D)."""
    loss: Tensor = _ChunkedLoss.apply(hidden, head, scorer)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, scorer: Scorer) -> Tensor:
        # What is frozen gets no gradient: each of both products is a third of the work here.
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head) if wants_head else None
        cast_head = head.to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)

        rows = max(1, CHUNK_ELEMENTS // len(head))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ cast_head.T).to(wide)  # (S, V)
            slope = scorer.slope_(logits, part).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast_head
            if grad_head is not None:
                grad_head += slope.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_head)
        return scorer.total()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        along = [None if saved is None else saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors]
        return (*along, None)


class _CrossEntropy:
    """The weighted sum of cross-entropies under the softmax or the stablemax law."""

    def __init__(self, labels: Tensor, weights: Tensor, is_stablemax: bool) -> None:
        self.labels, self.weights = labels, weights
        self.score = _stablemax_ if is_stablemax else _softmax_
        self.losses = torch.empty(len(labels), dtype=torch.float32, device=labels.device)
        self.preds = torch.empty(len(labels), dtype=torch.int64, device=labels.device)

    def slope_(self, logits: Tensor, part: slice) -> Tensor:
        self.preds[part] = logits.argmax(-1)
        self.losses[part], slope = self.score(logits, self.labels[part].unsqueeze(-1))
        return slope.mul_(self.weights[part].unsqueeze(-1))

    def total(self) -> Tensor:
        return (self.losses * self.weights).sum()


def _softmax_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and d loss / d logits; overwrites the logits."""
    chosen = logits.gather(-1, labels)
    total = logits.logsumexp(-1, keepdim=True)
    slope = logits.sub_(total).exp_()
    slope.scatter_add_(-1, labels, torch.full_like(chosen, -1.0))
    return (total - chosen).squeeze(-1), slope


def _stablemax_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the stablemax law: s(x) is 1 + x above zero and 1 / (1 - x) below."""
    size = logits.abs() + 1
    is_negative = logits < 0
    s = torch.where(is_negative, size.reciprocal(), size)
    total = s.sum(-1, keepdim=True)
    losses = (total.log() - s.gather(-1, labels).log()).squeeze(-1)
    slope = torch.where(is_negative, s.square_(), 1.0).div_(total)
    slope.scatter_add_(-1, labels, -size.gather(-1, labels).reciprocal())
    return losses, slope


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, *, is_stablemax: bool
) -> tuple[Tensor, TokenScores]:
    """Weighted sum of the losses of T tokens, with gradient for hidden states (T, D) and head (V, D)."""
    scorer = _CrossEntropy(labels.long(), weights, is_stablemax)
    loss = chunked_loss(hidden, head, scorer)
    return loss, TokenScores(scorer.losses, scorer.preds)


def dense_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, TokenScores]:
    """The same from logits (T, V) that exist already, in plain operations."""
    losses = loss_fn(logits, labels)
    return (losses * weights).sum(), TokenScores(losses.detach(), logits.detach().argmax(-1))
