"""Losses of hidden states against a large vocabulary in one pass over chunks of tokens; never tokens x vocabulary whole.

T supervised tokens, S tokens of a chunk, D hidden, V vocabulary. A chunk of logits is made, scored, turned into
gradients and forgotten.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # of float32: 128 MiB, some 1000 tokens of a 32,000-piece vocabulary


class TokenScores(NamedTuple):
    """What is known of every supervised token, without gradient."""

    losses: Tensor  # (T,) float32
    preds: Tensor  # (T,) int64


class Scorer(Protocol):
    """A loss of T tokens that is computed from their logits, chunk by chunk."""

    def slope_(self, logits: Tensor, part: slice) -> Tensor:
        """Score the tokens `part`; returns the slope (S, V) of the total along their logits, which may be overwritten.

        Logits have the dtype of the hidden states; the slope may have a wider one.
        """

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

        rows = rows_of_chunk(len(head))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            slope = scorer.slope_(hidden[part] @ cast_head.T, part).to(hidden.dtype)  # (S, V)
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


def rows_of_chunk(vocab_size: int) -> int:
    return max(1, CHUNK_ELEMENTS // vocab_size)


# logits (S, V), labels (S,), weights (S,), is_stablemax -> losses (S,), predictions (S,), slope (S, V)
ScoreChunk = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def scored_(logits: Tensor, labels: Tensor, weights: Tensor, is_stablemax: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and predictions of a chunk of logits, and the slope of the weighted losses along them in their dtype; may
    overwrite them."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    preds = wide.argmax(-1)
    losses, slope = (_stablemax_ if is_stablemax else _softmax_)(wide, labels.unsqueeze(-1))
    return losses, preds, slope.mul_(weights.unsqueeze(-1)).to(logits.dtype)


class CompiledScore:
    """The same in compiled code, which reads and writes logits in their own dtype only; one graph serves all chunks,
    because a shorter one is filled up."""

    def __init__(self) -> None:
        self.compiled = torch.compile(scored_, dynamic=False)

    def __call__(
        self, logits: Tensor, labels: Tensor, weights: Tensor, is_stablemax: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(logits)
        missing = rows_of_chunk(logits.shape[1]) - count
        if missing:
            logits, labels, weights = (
                F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) for x in (logits, labels, weights)
            )
        losses, preds, slope = self.compiled(logits, labels, weights, is_stablemax)
        return losses[:count], preds[:count], slope[:count]


class _CrossEntropy:
    """The weighted sum of cross-entropies under the softmax or the stablemax law."""

    def __init__(self, labels: Tensor, weights: Tensor, is_stablemax: bool, score: ScoreChunk) -> None:
        self.labels, self.weights, self.is_stablemax, self.score = labels, weights, is_stablemax, score
        self.losses = torch.empty(len(labels), dtype=torch.float32, device=labels.device)
        self.preds = torch.empty(len(labels), dtype=torch.int64, device=labels.device)

    def slope_(self, logits: Tensor, part: slice) -> Tensor:
        self.losses[part], self.preds[part], slope = self.score(
            logits, self.labels[part], self.weights[part], self.is_stablemax
        )
        return slope

    def total(self) -> Tensor:
        return (self.losses * self.weights).sum()


def _softmax_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and d loss / d logits; overwrites the logits."""
    chosen = logits.gather(-1, labels)
    total = logits.logsumexp(-1, keepdim=True)
    slope = logits.sub_(total).exp_()
    return (total - chosen).squeeze(-1), _added_at_(slope, labels, torch.full_like(chosen, -1.0))


def _stablemax_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the stablemax law: s(x) is 1 + x above zero and 1 / (1 - x) below."""
    size = logits.abs() + 1
    is_negative = logits < 0
    s = torch.where(is_negative, size.reciprocal(), size)
    total = s.sum(-1, keepdim=True)
    losses = (total.log() - s.gather(-1, labels).log()).squeeze(-1)
    slope = torch.where(is_negative, s.square_(), 1.0).div_(total)
    return losses, _added_at_(slope, labels, -size.gather(-1, labels).reciprocal())


def _added_at_(slope: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """The slope with a value more at each label; scattering would make compiled code write all of it out in float32."""
    if torch.compiler.is_compiling():
        is_label = torch.arange(slope.shape[-1], device=slope.device) == labels
        return torch.where(is_label, slope + values, slope)
    return slope.scatter_add_(-1, labels, values)


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, *, is_stablemax: bool, score: ScoreChunk = scored_
) -> tuple[Tensor, TokenScores]:
    """Weighted sum of the losses of T tokens, with gradient for hidden states (T, D) and head (V, D)."""
    scorer = _CrossEntropy(labels.long(), weights, is_stablemax, score)
    loss = chunked_loss(hidden, head, scorer)
    return loss, TokenScores(scorer.losses, scorer.preds)


def dense_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, TokenScores]:
    """The same from logits (T, V) that exist already, in plain operations."""
    losses = loss_fn(logits, labels)
    return (losses * weights).sum(), TokenScores(losses.detach(), logits.detach().argmax(-1))
