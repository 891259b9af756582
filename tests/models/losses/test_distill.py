"""The loss of a student against plain formulas: nothing at equality, chunks change nothing, gradients are those of the formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import chunked
from models.losses.distill import NO_MASS, UNUSED, DistillScores, Divergence, TeacherTargets, distill_loss
from src.distillation.targets.signal import log_norms_of

TOKENS, WIDTH, VOCAB = 7, 5, 11


def targets_of(logits: Tensor, k: int | None, temperature: float = 1.0, valid: Tensor | None = None) -> TeacherTargets:
    """What a teacher with these logits (T, V) says: its k likeliest ids, or all."""
    logprobs = logits.log_softmax(-1)
    norm = log_norms_of(logprobs, [temperature])[:, 0]
    valid = torch.ones(len(logits), dtype=torch.bool) if valid is None else valid
    if k is None:
        return TeacherTargets(logprobs, norm, valid)
    best = logprobs.topk(k)
    return TeacherTargets(best.values, norm, valid, ids=best.indices.int())


def student(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    return hidden, head, torch.randint(VOCAB, (TOKENS,), generator=generator)


def teacher_logits(seed: int = 1) -> Tensor:
    return 2 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learnt(targets: TeacherTargets | None, alpha: float = 0.0, **divergence: object) -> tuple[Tensor, DistillScores]:
    hidden, head, labels = student()
    ones = torch.ones(TOKENS, dtype=torch.float64)
    return distill_loss(
        hidden,
        head,
        labels,
        targets,
        ones,
        alpha=alpha,
        divergence=Divergence(**divergence),  # type: ignore[arg-type]
    )


def plain(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if beta == 1:
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * plain(log_p, log_m, 0) + (1 - beta) * plain(log_q, log_m, 0)


def coarse(log_p: Tensor, ids: Tensor, tail: str) -> Tensor:
    """A distribution over the told ids and, in a bucket, the rest."""
    few = log_p.gather(-1, ids)
    if tail == "renorm":
        return few.log_softmax(-1)
    if tail == "drop":
        return few
    return torch.cat((few, (1 - few.exp().sum(-1, keepdim=True)).log()), -1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("k", "tail"), [(None, "bucket"), (4, "bucket"), (4, "renorm"), (4, "drop"), (VOCAB, "bucket")]
)
def test_values_and_gradients_are_those_of_the_plain_formula(
    k: int | None, tail: str, beta: float, temperature: float
) -> None:
    if tail == "drop" and beta not in (0.0, 1.0):
        beta = 1.0
    hidden, head, labels = student()
    logits = teacher_logits()
    valid = torch.tensor([True] * 5 + [False] + [True])
    weights = torch.rand(TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    targets = targets_of(logits, k, temperature, valid)
    loss, scores = distill_loss(
        hidden,
        head,
        labels,
        targets,
        weights,
        alpha=0.3,
        divergence=Divergence(beta, temperature, tail),  # type: ignore[arg-type]
    )
    loss.backward()

    own_hidden, own_head, _ = student()
    log_p = (logits / temperature).log_softmax(-1)
    log_q = (own_hidden @ own_head.T / temperature).log_softmax(-1)
    if k is not None and k < VOCAB:
        ids = logits.topk(k).indices
        log_p, log_q = coarse(log_p, ids, tail), coarse(log_q, ids, tail)
    kd = temperature**2 * plain(log_p, log_q, beta) * valid
    ce = -(own_hidden @ own_head.T).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    expected = 0.3 * (ce * weights).sum() + 0.7 * (kd * weights).sum()
    expected.backward()
    torch.testing.assert_close(scores.kd, kd.detach())
    torch.testing.assert_close(scores.ce, ce.detach())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, own_hidden.grad)
    torch.testing.assert_close(head.grad, own_head.grad)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("k", [None, 3, VOCAB])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(k: int | None, temperature: float, beta: float) -> None:
    hidden, head, labels = student(dtype=torch.float32)
    targets = targets_of((hidden @ head.T).detach(), k, temperature)
    ones = torch.ones(TOKENS)
    loss, scores = distill_loss(
        hidden,
        head,
        labels,
        targets,
        ones,
        alpha=0.0,
        divergence=Divergence(beta, temperature),
    )
    loss.backward()
    assert scores.kd.abs().max() < 1e-6 and loss.abs() < 1e-6
    assert hidden.grad is not None and hidden.grad.abs().max() < 1e-5
    assert scores.agrees.all()


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, VOCAB), scale=st.floats(0.1, 5), beta=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 10_000))
def test_knowing_less_of_the_teacher_never_makes_the_difference_larger(
    k: int, scale: float, beta: float, seed: int
) -> None:
    logits = scale * teacher_logits(seed)
    part, whole = (learnt(targets_of(logits, size), beta=beta)[1].kd for size in (k, None))
    assert (part > -1e-4).all() and (part <= whole + 1e-4).all()  # a rest below 1e-6 is left out


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, scores = learnt(targets_of(teacher_logits(), 4), alpha=0.4)
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 2 * VOCAB)
    cut, cut_scores = learnt(targets_of(teacher_logits(), 4), alpha=0.4)
    torch.testing.assert_close(whole, cut)
    for one, other in zip(scores, cut_scores, strict=True):
        torch.testing.assert_close(one, other)


def test_drawn_ids_give_the_divergence_on_average() -> None:
    logits = teacher_logits()
    logprobs = logits.log_softmax(-1)
    drawn = logprobs.exp().multinomial(200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    counts = torch.stack([row.bincount(minlength=VOCAB) for row in drawn])
    ids = torch.arange(VOCAB).expand(TOKENS, -1).int()
    unused = {"ids": F.pad(ids, (0, 1), value=UNUSED), "logprobs": F.pad(logprobs, (0, 1), value=NO_MASS)}
    shares = F.pad(counts / counts.sum(-1, keepdim=True), (0, 1))
    for temperature in (1.0, 2.0):
        targets = TeacherTargets(
            unused["logprobs"],
            log_norms_of(logprobs, [temperature])[:, 0],
            torch.ones(TOKENS, dtype=torch.bool),
            ids=unused["ids"],
            shares=shares,
        )
        found = learnt(targets, temperature=temperature)[1].kd
        expected = learnt(targets_of(logits, None, temperature), temperature=temperature)[1].kd
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)
    with pytest.raises(ValueError, match="teacher_kind=sampled"):
        learnt(targets, beta=1.0)


def test_impossible_ids_unused_slots_and_certainty_stay_finite() -> None:
    logprobs = torch.full((TOKENS, VOCAB), float("-inf"), dtype=torch.float64)
    logprobs[:, 3] = 0.0
    all_targets = [targets_of(logprobs, None), targets_of(logprobs, 1)]
    best = teacher_logits().log_softmax(-1).topk(3)
    ids, values = best.indices.int(), best.values.clone()
    ids[:, 2], values[:, 2] = UNUSED, float("-inf")
    all_targets.append(TeacherTargets(values, torch.zeros(TOKENS), torch.ones(TOKENS) > 0, ids=ids))
    ids, values = torch.full_like(ids, UNUSED), torch.full_like(values, float("-inf"))
    all_targets.append(TeacherTargets(values, torch.zeros(TOKENS), torch.zeros(TOKENS) > 0, ids=ids))
    for targets in all_targets:
        for beta in (0.0, 0.5, 1.0):
            hidden, head, labels = student()
            ones = torch.ones(TOKENS, dtype=torch.float64)
            loss, scores = distill_loss(
                hidden,
                head,
                labels,
                targets,
                ones,
                alpha=0.0,
                divergence=Divergence(beta),
            )
            loss.backward()
            assert loss.isfinite() and scores.kd.isfinite().all() and hidden.grad.isfinite().all()  # type: ignore[union-attr]
    assert not scores.agrees.any() and loss == 0 and not hidden.grad.any()  # type: ignore[union-attr]
    two = learnt(all_targets[2])[1].kd
    torch.testing.assert_close(two, learnt(targets_of(teacher_logits(), 2))[1].kd)


def test_only_the_alignment_with_the_next_token_gives_nothing() -> None:
    """Three tokens a, b, c: the teacher's word at a is about b. Its words moved by one place are about something else."""
    logits = torch.eye(3)[[1, 2, 0]] * 9  # after a comes b, after b comes c, after c comes a
    hidden, head = torch.eye(3), (torch.eye(3)[[1, 2, 0]] * 9).T.contiguous()
    labels, ones = torch.tensor([1, 2, 0]), torch.ones(3)
    right, wrong = (
        distill_loss(
            hidden,
            head,
            labels,
            targets_of(said, 2),
            ones,
            alpha=0.0,
            divergence=Divergence(),
        )[1].kd
        for said in (logits, logits.roll(1, 0))
    )
    assert right.abs().max() < 1e-6 and wrong.min() > 5


def test_an_option_out_of_range_is_named() -> None:
    for wrong in ({"beta": 2.0}, {"temperature": 0.0}, {"tail": "renormalise"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Divergence(**wrong)  # type: ignore[arg-type]
