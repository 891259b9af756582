"""Cross-entropy to the text and divergence from a teacher, in one pass over chunks of tokens.

T tokens, S tokens of a chunk, D hidden, V vocabulary, K ids that the teacher names for a token.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from models.losses.chunked import chunked_loss

Tail = Literal["bucket", "renorm", "drop"]
UNUSED = -1  # an id slot without an id
# The log-probability of the impossible, which also stands in unused slots: exp of it vanishes, and it stays finite with
# any temperature on either side.
NO_MASS = -80.0
LEAST_REST = 1e-6  # mass outside of the named ids; less than that is rounding


class TeacherTargets(NamedTuple):
    """The teacher's distribution over the next token, for each of T tokens."""

    logprobs: Tensor  # (T, K) at temperature 1; (T, V) where all ids are named
    log_norm: Tensor  # (T,) log of the sum of p^(1/temperature) over the vocabulary
    valid: Tensor  # (T,) bool; False where the teacher says nothing
    ids: Tensor | None = None  # (T, K), UNUSED in slots without an id; None: all of them
    shares: Tensor | None = None  # (T, K) of drawn ids: how often each was drawn, as a part of all draws


@dataclass(frozen=True)
class Divergence:
    """What is minimised between teacher P and student Q, both at a temperature, times its square.

    `beta` 0 is KL(P, Q), which makes the student cover all that the teacher does; 1 is KL(Q, P), which makes it seek
    the teacher's peaks; between lies the generalised Jensen-Shannon divergence. Of the ids that the teacher does not
    name, `bucket` compares the summed probability, `renorm` knows nothing, `drop` leaves them out of the sum.
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

    def check_targets(self, targets: TeacherTargets, vocab_size: int) -> None:
        """Refuse another vocabulary, and drawn ids, which hold likely tokens only, for anything but KL(P, Q)."""
        if targets.shares is not None and self.beta:
            raise ValueError(
                f"divergence with beta={self.beta:g} needs more probabilities than teacher_kind=sampled holds. "
                "Use forward_kl, or teacher_kind=topk or dense."
            )
        if targets.ids is None and targets.logprobs.shape[-1] != vocab_size:
            raise ValueError(
                f"The teacher knows {targets.logprobs.shape[-1]} ids, the student has {vocab_size}. Give the student the "
                "tokenizer's vocabulary, and use a teacher of the same one."
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
    alpha: float  # weight of the cross-entropy

    @property
    def losses(self) -> Tensor:
        return self.alpha * self.ce + (1 - self.alpha) * self.kd


def distill_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    targets: TeacherTargets | None,
    weights: Tensor,
    *,
    alpha: float,
    divergence: Divergence,
) -> tuple[Tensor, DistillScores]:
    """alpha * cross-entropy + (1 - alpha) * divergence, summed over T tokens with `weights` (T,); hidden states (T, D)
    and head (V, D) get gradients.

    Tokens of which the teacher says nothing add no divergence; without targets the loss is the cross-entropy alone.
    """
    if targets is not None:
        divergence.check_targets(targets, len(head))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    scorer = _Mixture(labels.long(), targets, weights, 1.0 if targets is None else alpha, divergence, wide)
    loss = chunked_loss(hidden, head, scorer)
    return loss, scorer.scores


class _Mixture:
    """Scores chunks of tokens against the text and, if there are targets, the teacher."""

    def __init__(
        self,
        labels: Tensor,
        targets: TeacherTargets | None,
        weights: Tensor,
        alpha: float,
        divergence: Divergence,
        wide: torch.dtype,
    ) -> None:
        self.labels, self.targets, self.alpha, self.divergence = labels, targets, alpha, divergence
        self.ce_weights = weights
        self.kd_weights = weights if targets is None else weights * targets.valid
        self.scores = DistillScores(
            ce=torch.zeros(len(labels), dtype=wide, device=labels.device),
            kd=torch.zeros(len(labels), dtype=wide, device=labels.device),
            preds=torch.empty_like(labels),
            agrees=torch.zeros_like(labels, dtype=torch.bool),
            alpha=alpha,
        )

    def slope_(self, logits: Tensor, part: slice) -> Tensor:
        ce, kd, preds, agrees, _ = self.scores
        logits = logits.to(ce.dtype)
        preds[part] = logits.argmax(-1)
        labels, ce_weights = self.labels[part, None], (self.alpha * self.ce_weights[part])[:, None].to(logits.dtype)
        if self.targets is None:
            ce[part], slope = _cross_entropy_(logits, labels, ce_weights)
            return slope
        chunk = _Chunk.of(self.targets, part, self.divergence.temperature, logits.dtype)
        valid = self.targets.valid[part]
        agrees[part] = (preds[part] == chunk.likeliest()) & valid
        kd_weights = ((1 - self.alpha) * self.kd_weights[part])[:, None].to(logits.dtype)
        ce[part], kd[part], slope = _both_(logits, labels, ce_weights, chunk, kd_weights, self.divergence)
        kd[part] *= valid
        return slope

    def total(self) -> Tensor:
        ce, kd = self.scores.ce, self.scores.kd
        return self.alpha * (ce * self.ce_weights).sum() + (1 - self.alpha) * (kd * self.kd_weights).sum()


class _Chunk(NamedTuple):
    """Targets of S tokens, ready to be compared. Unused slots repeat the first id in use."""

    log_p: Tensor  # (S, K) at the divergence's temperature
    ids: Tensor | None  # (S, K); None: all of them
    is_used: Tensor  # (S, K)
    first: Tensor  # (S, 1) slot of the first id in use
    draws: Tensor | None  # (S, K) weights of drawn ids

    @classmethod
    def of(cls, targets: TeacherTargets, part: slice, temperature: float, dtype: torch.dtype) -> "_Chunk":
        logprobs = targets.logprobs[part].to(dtype)
        is_used = targets.valid[part, None].expand_as(logprobs)
        ids = None if targets.ids is None else targets.ids[part].long()
        if ids is not None:
            is_used = is_used & (ids != UNUSED)
        first = is_used.byte().argmax(-1, keepdim=True)
        if ids is not None:
            ids = torch.where(is_used, ids, ids.gather(-1, first)).clamp_min(0)
        log_p = torch.where(is_used, logprobs / temperature - targets.log_norm[part, None], NO_MASS)
        log_p = log_p.clamp_min(NO_MASS)
        draws = None
        if targets.shares is not None:  # drawn at temperature 1, and weighed for this one
            draws = torch.where(is_used, targets.shares[part] * (log_p - logprobs).exp(), 0.0)
        return cls(log_p, ids, is_used, first, draws)

    def likeliest(self) -> Tensor:
        best = self.log_p.argmax(-1, keepdim=True)
        return (best if self.ids is None else self.ids.gather(-1, best)).squeeze(-1)


# With z the logits of a token, T the temperature and q = softmax(z / T):
#
#   cross-entropy   CE = -log q_label at T = 1             dCE/dz_j = q_j - [j = label]
#   divergence      D(log q_i for each named id i, log q_R of all other ids together), whose slopes a_i and a_R along
#                   these come from automatic differentiation; along z / T it has the slope
#                     named j:   a_j - q_j * (sum a_i + a_R)
#                     other j:   q_j / q_R * a_R - q_j * (sum a_i + a_R)
#   loss            alpha * CE + (1 - alpha) * T^2 * D     where the slope along z is that along z / T divided by T
#
# All are multiplied with the weight of the token.


def _cross_entropy_(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies (S,) and their weighted slope along the logits (S, V), which are overwritten."""
    log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
    losses = -log_q.gather(-1, labels).squeeze(-1)
    slope = log_q.exp_().mul_(weights)
    return losses, slope.scatter_add_(-1, labels, -weights)


def _both_(
    logits: Tensor, labels: Tensor, ce_weights: Tensor, chunk: _Chunk, kd_weights: Tensor, divergence: Divergence
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies (S,), divergences (S,) and the slope of both along the logits (S, V), which are overwritten."""
    temperature = divergence.temperature
    if temperature == 1.0:  # one softmax serves both
        log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
        losses = -log_q.gather(-1, labels).squeeze(-1)
        values, slope = _divergence_(log_q, chunk, divergence, kd_weights, ce_weights)
        return losses, values, slope.scatter_add_(-1, labels, -ce_weights)
    scaled = logits / temperature
    log_q = scaled.sub_(scaled.logsumexp(-1, keepdim=True))
    values, slope = _divergence_(log_q, chunk, divergence, kd_weights * temperature, torch.zeros_like(ce_weights))
    losses, ce_slope = _cross_entropy_(logits, labels, ce_weights)
    return losses, values * temperature**2, slope.add_(ce_slope)


def _divergence_(
    log_q: Tensor, chunk: _Chunk, divergence: Divergence, weights: Tensor, ce_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """D (S,), and along z / T (S, V) its slope times `weights` plus q times `ce_weights`; overwrites `log_q`."""
    if chunk.ids is None:
        values, a, _ = _compared(chunk, log_q, None, divergence)
        slope = log_q.exp_().mul_(ce_weights - weights * a.sum(-1, keepdim=True))
        return values, slope.add_(a.mul_(weights))
    log_q_named = log_q.gather(-1, chunk.ids)  # (S, K)
    slope = log_q.exp_().scatter_(-1, chunk.ids, 0.0)  # the others alone: 1 - the named ones would lose digits
    log_q_rest = slope.sum(-1, keepdim=True).log_().clamp_min_(NO_MASS)
    values, a, a_rest = _compared(chunk, log_q_named, log_q_rest, divergence)
    of_q = ce_weights - weights * (a.sum(-1, keepdim=True) + a_rest)
    slope.mul_(of_q + weights * a_rest / log_q_rest.exp())
    named = log_q_named.exp() * of_q + weights * a
    named = torch.where(chunk.is_used, named, named.gather(-1, chunk.first))
    return values, slope.scatter_(-1, chunk.ids, named)


def _compared(
    chunk: _Chunk, log_q_named: Tensor, log_q_rest: Tensor | None, divergence: Divergence
) -> tuple[Tensor, Tensor, Tensor]:
    """D (S,) and its slopes: a (S, K) along the student's log-probabilities of the named ids, a_R (S, 1) of the rest."""
    no_slope = log_q_named.new_zeros(len(log_q_named), 1)
    if chunk.draws is not None:  # the mean over draws
        return (chunk.draws * (chunk.log_p - log_q_named)).sum(-1), -chunk.draws, no_slope
    log_p, log_q = chunk.log_p, torch.where(chunk.is_used, log_q_named, NO_MASS)
    has_bucket = log_q_rest is not None and divergence.tail == "bucket"
    if log_q_rest is not None and has_bucket:
        p_rest = 1 - log_p.exp().sum(-1, keepdim=True)
        is_there = (p_rest > LEAST_REST) | (log_q_rest.exp() > LEAST_REST)
        log_p_rest = torch.where(is_there, p_rest.clamp_min(LEAST_REST).log(), NO_MASS)
        log_p = torch.cat((log_p, log_p_rest), -1)
        log_q = torch.cat((log_q, torch.where(is_there, log_q_rest, NO_MASS)), -1)
    with torch.enable_grad():
        student = log_q.detach().requires_grad_()
        teacher, own = log_p, student
        if log_q_rest is not None and divergence.tail == "renorm":
            teacher, own = log_p.log_softmax(-1), student.log_softmax(-1)
        values = divergence.between(teacher, own, are_whole=log_q_rest is None or divergence.tail != "drop")
        (a,) = torch.autograd.grad(values.sum(), student)
    a_named = torch.where(chunk.is_used, a[:, : log_q_named.shape[-1]], 0.0)
    return values.detach(), a_named, a[:, log_q_named.shape[-1] :] if has_bucket else no_slope
