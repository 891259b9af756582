"""Cross-entropy of hidden states against a large vocabulary, without ever holding tokens x vocabulary.

T supervised tokens, D hidden, V vocabulary. A chunk of logits is made, scored, turned into gradients and forgotten.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # of float32: 128 MiB, some 1000 tokens of a 32,000-piece vocabulary


class TokenScores(NamedTuple):
    """What is known of every supervised token, without gradient."""

    losses: Tensor  # (T,) float32
    preds: Tensor  # (T,) int64


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, is_stablemax: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # A frozen head gets no gradient: that product is a third of the work here.
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head) if wants_head else None
        cast_head = head.to(hidden.dtype)
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        preds = torch.empty(len(labels), dtype=torch.int64, device=hidden.device)

        rows = max(1, CHUNK_ELEMENTS // head.shape[0])
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ cast_head.T).float()  # (rows, V)
            preds[part] = logits.argmax(-1)
            score = _stablemax_ if is_stablemax else _softmax_
            losses[part], slope = score(logits, labels[part].unsqueeze(-1))
            if wants_hidden or wants_head:
                slope = slope.mul_(weights[part].unsqueeze(-1)).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast_head
            if grad_head is not None:
                grad_head += slope.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(losses, preds)
        return (losses * weights).sum(), losses, preds

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grads[0].to(grad_hidden.dtype)
        return grad_hidden, None if grad_head is None else grad_head * grads[0], None, None, None


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
    loss, losses, preds = _ChunkedCrossEntropy.apply(hidden, head, labels.long(), weights, is_stablemax)
    return loss, TokenScores(losses, preds)


def dense_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, TokenScores]:
    """The same from logits (T, V) that are there: the plain way, as a yardstick."""
    losses = loss_fn(logits, labels)
    return (losses * weights).sum(), TokenScores(losses.detach(), logits.detach().argmax(-1))
