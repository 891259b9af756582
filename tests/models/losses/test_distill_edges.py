"""The loss of a student where it is easily wrong: near equality, with weights that are frozen, in memory, without a teacher."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import chunked
from models.losses.distill import NO_MASS, UNUSED, DistillScores, Divergence, TeacherTargets, distill_loss
from src.distillation.targets.signal import log_norms_of
from tests.models.losses.test_chunked import LargestTensor

TOKENS, WIDTH, VOCAB, K = 8, 4, 64, 3
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]


def student(seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(TOKENS, WIDTH, generator=generator)).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator).requires_grad_()
    return hidden, head, torch.randint(VOCAB, (TOKENS,), generator=generator)


def targets_of(logits: Tensor, k: int | None, temperature: float = 1.0) -> TeacherTargets:
    logprobs = logits.detach().log_softmax(-1)
    norm = log_norms_of(logprobs, [temperature])[:, 0]
    valid = torch.ones(len(logits), dtype=torch.bool)
    if k is None:
        return TeacherTargets(logprobs, norm, valid)
    best = logprobs.topk(k)
    return TeacherTargets(best.values, norm, valid, ids=best.indices.int())


def scored(
    tensors: tuple[Tensor, Tensor, Tensor],
    targets: TeacherTargets | None,
    divergence: Divergence = Divergence(),  # noqa: B008  # frozen
    alpha: float = 0.0,
) -> tuple[Tensor, DistillScores]:
    ones = torch.ones(TOKENS)
    return distill_loss(*tensors, targets, ones, alpha=alpha, divergence=divergence)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 3, VOCAB, None])
def test_a_confident_student_equal_to_its_teacher_is_at_no_distance(k, beta, temperature):
    """In float32, where logits of this size are known to a millionth only."""
    tensors = student(scale=4.0)
    loss, scores = scored(tensors, targets_of(tensors[0] @ tensors[1].T, k, temperature), Divergence(beta, temperature))
    loss.backward()
    assert scores.kd.abs().max() < 1e-6 and scores.agrees.all()
    assert tensors[0].grad.abs().max() < 1e-5 * temperature**2


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, VOCAB), temperature=st.sampled_from(TEMPERATURES), seed=st.integers(0, 10_000))
def test_hardly_different_distributions_are_at_no_negative_distance(k, temperature, seed):
    hidden, head, labels = student(seed)
    logits = (hidden @ head.T).detach()
    logits += 1e-4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    kd = scored((hidden, head, labels), targets_of(logits, k, temperature), Divergence(0.0, temperature))[1].kd
    assert kd.min() > -1e-9 and kd.max() < 1e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_slots_that_tell_nothing_change_nothing(temperature):
    """Of drawn ids too, whose weights at another temperature come from their probabilities."""
    logprobs = (3 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(5))).log_softmax(-1)
    best = logprobs.topk(K)
    kept = {"valid": torch.ones(TOKENS, dtype=torch.bool), "log_norm": log_norms_of(logprobs, [temperature])[:, 0]}
    shares = torch.full((TOKENS, K), 1 / K)
    pad = torch.nn.functional.pad
    for drawn in (None, shares):
        outcomes = []
        for extra in (0, 2):
            targets = TeacherTargets(
                pad(best.values, (0, extra), value=NO_MASS),
                ids=pad(best.indices.int(), (0, extra), value=UNUSED),
                shares=None if drawn is None else pad(drawn, (0, extra)),
                **kept,
            )
            tensors = student()
            loss, scores = scored(tensors, targets, Divergence(0.0, temperature), alpha=0.3)
            loss.backward()
            outcomes.append((loss.detach(), scores.kd, tensors[0].grad, tensors[1].grad))
        torch.testing.assert_close(outcomes[0], outcomes[1])


def test_a_student_that_is_sure_of_the_told_ids_is_pushed_to_the_rest():
    """Rest 1e-8 where the teacher has a third: the slope along the logits is q - p to the last digit all the same."""
    head = torch.eye(VOCAB)
    logits = torch.full((1, VOCAB), -22.0)
    logits[0, :K] = 0.0
    hidden, wanted = logits.requires_grad_(), torch.full((1, VOCAB), 1 / 3 / (VOCAB - K))
    wanted[0, :K] = 2 / 3 / K
    ones = torch.ones(1)
    loss, _ = distill_loss(
        hidden,
        head,
        torch.zeros(1, dtype=torch.long),
        targets_of(wanted.log(), K),
        ones,
        alpha=0.0,
        divergence=Divergence(),
    )
    loss.backward()
    torch.testing.assert_close(hidden.grad, hidden.detach().softmax(-1) - wanted, rtol=1e-4, atol=1e-7)


def test_a_teacher_of_another_vocabulary_is_refused():
    tensors = student()
    with pytest.raises(ValueError, match=f"{VOCAB - 1} ids"):
        scored(tensors, targets_of((tensors[0] @ tensors[1].T)[:, 1:], None))


def test_without_a_teacher_all_weight_is_on_the_text():
    loss, scores = scored(student(), None, alpha=0.1)
    torch.testing.assert_close(loss, scores.ce.sum())
    assert not scores.kd.any() and not scores.agrees.any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_gets_the_same(frozen):
    gradients = []
    for is_frozen in (False, True):
        tensors = student()
        targets = targets_of(3 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(1)), K)
        tensors[frozen].requires_grad_(not is_frozen)
        loss, _ = scored(tensors, targets, alpha=0.4)
        assert [saved is None for saved in loss.grad_fn.saved_tensors] == [is_frozen and n == frozen for n in (0, 1)]
        (3 * loss).backward()
        gradients.append([tensor.grad for tensor in tensors[:2]])
    assert gradients[1][frozen] is None
    assert torch.equal(gradients[1][1 - frozen], gradients[0][1 - frozen])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_times_vocabulary_never_exists_as_a_whole(temperature, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 2 * VOCAB)
    tensors = student()
    targets = targets_of(tensors[0] @ tensors[1].T, K, temperature)
    with LargestTensor() as largest:
        scored(tensors, targets, Divergence(0.0, temperature), alpha=0.4)
    assert largest.numel == WIDTH * VOCAB, "the head and its gradient are the largest there is"


def test_half_precision_states_are_scored_in_float32():
    hidden, head, labels = student()
    targets = targets_of(hidden @ head.T, K)
    loss, scores = scored((hidden, head, labels), targets, alpha=0.4)
    half = hidden.detach().bfloat16().requires_grad_()
    half_loss, half_scores = scored((half, head, labels), targets, alpha=0.4)
    half_loss.backward()
    assert half_scores.ce.dtype == half_scores.kd.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half_loss, loss, rtol=0.01, atol=0.02)
    torch.testing.assert_close(half_scores.ce, scores.ce, rtol=0.02, atol=0.02)
