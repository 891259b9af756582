"""Cross-entropy to the text and divergence from a teacher in one pass over chunks; never tokens x vocabulary whole.

T tokens, D hidden, V vocabulary, K ids that the teacher tells of a token. A chunk of logits is made, scored against
both, turned into gradients and forgotten.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from models.losses.chunked import CHUNK_ELEMENTS
from src.distillation.targets.signal import UNUSED, TeacherSignal

Tail = Literal["bucket", "renorm", "drop"]
LEAST_REST = 1e-6  # mass outside of the told ids; less than that is rounding
LEAST_LOGPROB = -80.0  # stands for impossible: exp of it vanishes, and yet it is a number


@dataclass(frozen=True)
class Divergence:
    """What is minimised between teacher P and student Q, both at a temperature, times its square.

    `beta` 0 is KL(P, Q), which makes the student cover all that the teacher does; 1 is KL(Q, P), which makes it seek
    the teacher's peaks; between lies the generalised Jensen-Shannon divergence. Of the ids that the teacher does not
    tell, `bucket` compares the summed probability, `renorm` knows nothing, `drop` leaves them out of the sum.
    """

    beta: float = 0.0
    temperature: float = 1.0
    tail: Tail = "bucket"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta}: expected 0 (forward KL) to 1 (reverse KL).")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected a number above 0.")
        if self.tail not in get_args(Tail):
            raise ValueError(f"tail={self.tail!r}: expected one of {', '.join(get_args(Tail))}.")

    def check_signal(self, signal: TeacherSignal) -> None:
        """Draws from the teacher tell of its likely tokens only, so they say what KL(P, Q) is and nothing else."""
        if signal.shares is not None and self.beta:
            raise ValueError(
                f"divergence with beta={self.beta:g} needs the probabilities of the student's tokens too, which "
                "teacher_kind=sampled does not tell. Use forward_kl, or teacher_kind=topk or dense."
            )

    def between(self, log_p: Tensor, log_q: Tensor, are_whole: bool) -> Tensor:
        """Of what is given over the last axis, whole distributions or a part of two."""
        distance = _distance if are_whole else _part_of_distance
        if self.beta == 0:
            return distance(log_p, log_q)
        if self.beta == 1:
            return distance(log_q, log_p)
        share = log_p.new_tensor(self.beta)
        log_m = torch.logaddexp(log_p + share.log(), log_q + torch.log1p(-share))
        return share * distance(log_p, log_m) + (1 - share) * distance(log_q, log_m)


def _part_of_distance(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _distance(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a, b) of distributions, as a sum of a log(a / b) - a + b.

    What is added sums to nothing, but makes every term at least 0, and 0 where both are equal: rounding of the
    logarithms then counts by its square. Without it two equal distributions would seem 1e-5 apart at temperature 4.
    """
    a, gap = log_a.exp(), log_a - log_b
    near = gap.clamp(-1, 1)
    terms = torch.where(gap.abs() < 1, a * (near + torch.expm1(-near)), a * gap - a + log_b.exp())
    return terms.sum(-1)


class DistillScores(NamedTuple):
    """What is known of every token, without gradient."""

    ce: Tensor  # (T,) nats
    kd: Tensor  # (T,) the divergence, 0 where the teacher says nothing
    preds: Tensor  # (T,)
    agrees: Tensor  # (T,) bool: student and teacher find the same id likeliest


class _Told(NamedTuple):
    """What the teacher says of a chunk of S tokens, ready to be compared. Unused slots repeat the first id in use."""

    log_p: Tensor  # (S, K) at the divergence's temperature
    ids: Tensor | None  # (S, K); None: all of them
    is_used: Tensor  # (S, K)
    first: Tensor  # (S, 1) slot of the first id in use
    draws: Tensor | None  # (S, K) weights of drawn ids

    @classmethod
    def of(
        cls, signal: TeacherSignal, part: slice, temperature: float, log_norm: Tensor, dtype: torch.dtype
    ) -> "_Told":
        logprobs = signal.logprobs[0, part].to(dtype)
        is_used = signal.valid[0, part, None].expand_as(logprobs)
        ids = None if signal.ids is None else signal.ids[0, part].long()
        if ids is not None:
            is_used = is_used & (ids != UNUSED)
        first = is_used.byte().argmax(-1, keepdim=True)
        if ids is not None:
            ids = torch.where(is_used, ids, ids.gather(-1, first)).clamp_min(0)
        log_p = torch.where(is_used, logprobs / temperature - log_norm[part, None], LEAST_LOGPROB)
        log_p = log_p.clamp_min(LEAST_LOGPROB)
        draws = None
        if signal.shares is not None:  # drawn at temperature 1, and weighed for this one
            draws = torch.where(is_used, signal.shares[0, part] * (log_p - logprobs).exp(), 0.0)
        return cls(log_p, ids, is_used, first, draws)

    def likeliest(self) -> Tensor:
        best = self.log_p.argmax(-1, keepdim=True)
        return (best if self.ids is None else self.ids.gather(-1, best)).squeeze(-1)


def distill_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    signal: TeacherSignal | None,
    *,
    ce_weights: Tensor,
    kd_weights: Tensor,
    alpha: float,
    divergence: Divergence,
) -> tuple[Tensor, DistillScores]:
    """alpha * cross-entropy + (1 - alpha) * divergence of T tokens, each a weighted sum; without a signal the first alone.

    hidden (T, D) and head (V, D) get gradients; `signal` is one row of T positions with the log norm of the
    divergence's temperature, the weights are (T,).
    """
    if signal is None:
        alpha = 1.0
    else:
        divergence.check_signal(signal)
        if signal.ids is None and signal.logprobs.shape[-1] != len(head):
            raise ValueError(
                f"The teacher tells of {signal.logprobs.shape[-1]} ids, the student has {len(head)}. Give the student the "
                "tokenizer's vocabulary, and use a teacher of the same one."
            )
        kd_weights = kd_weights * signal.valid[0]
    loss, *scores = _DistillLoss.apply(hidden, head, labels.long(), ce_weights, kd_weights, alpha, divergence, signal)
    return loss, DistillScores(*scores)


class _DistillLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        ce_weights: Tensor,
        kd_weights: Tensor,
        alpha: float,
        divergence: Divergence,
        signal: TeacherSignal | None,
    ) -> tuple[Tensor, ...]:
        # What is frozen gets no gradient: each of both products is a third of the work here.
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head) if wants_head else None
        cast_head = head.to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ce, kd = (torch.zeros(len(labels), dtype=wide, device=hidden.device) for _ in range(2))
        preds = torch.empty_like(labels)
        agrees = torch.zeros_like(labels, dtype=torch.bool)
        log_norm = None if signal is None else _log_norm(signal, divergence)

        rows = max(1, CHUNK_ELEMENTS // len(head))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ cast_head.T).to(wide)  # (S, V)
            preds[part] = logits.argmax(-1)
            weights = (alpha * ce_weights[part])[:, None].to(wide)
            if signal is None or log_norm is None:
                ce[part], slope = _cross_entropy_(logits, labels[part, None], weights)
            else:
                told = _Told.of(signal, part, divergence.temperature, log_norm, wide)
                agrees[part] = (preds[part] == told.likeliest()) & signal.valid[0, part]
                kd_part = ((1 - alpha) * kd_weights[part])[:, None].to(wide)
                ce[part], kd[part], slope = _both_(logits, labels[part, None], weights, told, kd_part, divergence)
                kd[part] *= signal.valid[0, part]
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast_head
            if grad_head is not None:
                grad_head += slope.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(ce, kd, preds, agrees)
        return alpha * (ce * ce_weights).sum() + (1 - alpha) * (kd * kd_weights).sum(), ce, kd, preds, agrees

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        along = [None if saved is None else saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors]
        return (*along, None, None, None, None, None, None)


def _log_norm(signal: TeacherSignal, divergence: Divergence) -> Tensor:
    """(T,) log of the sum of p^(1/T) over the vocabulary; of no effect where what is told is renormalised."""
    if signal.log_norms.shape[-1] != 1:
        raise ValueError(
            f"The signal holds {signal.log_norms.shape[-1]} temperatures, expected the one of the divergence, "
            f"{divergence.temperature:g}. Choose it with TeacherSignal.at_temperature."
        )
    return signal.log_norms[0, :, 0]


def _cross_entropy_(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (S,) and their weighted slope along the logits (S, V), which are overwritten."""
    log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
    losses = -log_q.gather(-1, labels).squeeze(-1)
    slope = log_q.exp_().mul_(weights)
    return losses, slope.scatter_add_(-1, labels, -weights)


def _both_(
    logits: Tensor, labels: Tensor, weights: Tensor, told: _Told, kd_weights: Tensor, divergence: Divergence
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies (S,), divergences (S,) and the weighted slope of both along the logits (S, V), which are
    overwritten."""
    temperature = divergence.temperature
    if temperature == 1.0:  # one softmax serves both
        log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
        losses = -log_q.gather(-1, labels).squeeze(-1)
        values, slope = _divergence_(log_q, told, divergence, kd_weights, weights)
        return losses, values, slope.scatter_add_(-1, labels, -weights)
    scaled = logits / temperature
    log_q = scaled.sub_(scaled.logsumexp(-1, keepdim=True))
    # The square of the temperature keeps the gradient's size; one of the two is lost along the logits.
    values, slope = _divergence_(log_q, told, divergence, kd_weights * temperature, torch.zeros_like(weights))
    losses, ce_slope = _cross_entropy_(logits, labels, weights)
    return losses, values * temperature**2, slope.add_(ce_slope)


def _divergence_(
    log_q: Tensor, told: _Told, divergence: Divergence, weights: Tensor, own_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Divergence (S,) of tokens, and the slope (S, V) of it times `weights` and log sum exp times `own_weights`.

    It depends on the logits through the log-probabilities of a few ids and of the rest. The slope along those few is
    found by automatic differentiation, that along the logits follows: log q_i has slope [i = j] - q_j.
    """
    if told.ids is None:
        values, along, _ = _compared(told, log_q, None, divergence)
        slope = log_q.exp_().mul_(own_weights - weights * along.sum(-1, keepdim=True))
        return values, slope.add_(along.mul_(weights))
    few = log_q.gather(-1, told.ids)  # (S, K)
    slope = log_q.exp_().scatter_(-1, told.ids, 0.0)  # what is not told, summed without the loss of digits of 1 - q
    rest = slope.sum(-1, keepdim=True).log_().clamp_min_(LEAST_LOGPROB)
    values, along, along_rest = _compared(told, few, rest, divergence)
    common = own_weights - weights * (along.sum(-1, keepdim=True) + along_rest)
    slope.mul_(common + weights * along_rest / rest.exp())
    of_told = few.exp() * common + weights * along
    of_told = torch.where(told.is_used, of_told, of_told.gather(-1, told.first))
    return values, slope.scatter_(-1, told.ids, of_told)


def _compared(told: _Told, few: Tensor, rest: Tensor | None, divergence: Divergence) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence (S,), its slope along the student's log-probabilities `few` (S, K) and along that of the rest (S, 1)."""
    nothing = few.new_zeros(len(few), 1)
    if told.draws is not None:  # the mean over draws
        return (told.draws * (told.log_p - few)).sum(-1), -told.draws, nothing
    log_p, log_q = told.log_p, torch.where(told.is_used, few, LEAST_LOGPROB)
    has_bucket = rest is not None and divergence.tail == "bucket"
    if rest is not None and has_bucket:
        rest_p = 1 - log_p.exp().sum(-1, keepdim=True)
        is_there = (rest_p > LEAST_REST) | (rest.exp() > LEAST_REST)
        log_rest_p = torch.where(is_there, rest_p.clamp_min(LEAST_REST).log(), LEAST_LOGPROB)
        log_p = torch.cat((log_p, log_rest_p), -1)
        log_q = torch.cat((log_q, torch.where(is_there, rest, LEAST_LOGPROB)), -1)
    with torch.enable_grad():
        student = log_q.detach().requires_grad_()
        teacher, own = log_p, student
        if rest is not None and divergence.tail == "renorm":
            teacher, own = log_p.log_softmax(-1), student.log_softmax(-1)
        values = divergence.between(teacher, own, are_whole=rest is None or divergence.tail != "drop")
        (along,) = torch.autograd.grad(values.sum(), student)
    of_few = torch.where(told.is_used, along[:, : few.shape[-1]], 0.0)
    return values.detach(), of_few, along[:, few.shape[-1] :] if has_bucket else nothing
