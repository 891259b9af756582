"""What the loss of puzzles counts: softened labels, and the weight of the halting head."""

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from models.losses.puzzles import ACTLossHead, loss_function, smoothed
from tests.models.small import make, make_batch


@pytest.mark.parametrize("loss_type", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_a_softened_label_is_a_mean_of_the_losses_of_all_tokens(loss_type):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 4, 5, dtype=torch.float64), torch.randint(0, 5, (2, 4))
    logits[0, 0] = 0
    labels[1, 3] = IGNORE_LABEL_ID
    logits.requires_grad_()
    loss = loss_function(loss_type)
    found = smoothed(loss(logits, labels), logits, labels, loss_type, 0.2)
    every = torch.stack([loss(logits, torch.where(labels == IGNORE_LABEL_ID, labels, token)) for token in range(5)])
    wanted = 0.8 * loss(logits, labels) + 0.2 * every.mean(0)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (found, wanted)]
    torch.testing.assert_close(*slopes)


def scored(training: bool, **options: float) -> float:
    head = ACTLossHead(make("trm"), **options).train(training)
    batch = make_batch()
    torch.manual_seed(2)
    _, loss, *_ = head(return_keys=(), carry=head.initial_carry(batch), batch=batch)
    return loss.item()


def test_labels_are_softened_in_training_alone():
    assert scored(True, label_smoothing=0.2) != pytest.approx(scored(True), abs=1e-3)
    assert scored(False, label_smoothing=0.2) == scored(False)


def test_the_halting_head_counts_as_much_as_it_is_told():
    without, half, whole = (scored(True, halt_loss_weight=weight) for weight in (0.0, 0.5, 1.0))
    assert scored(True) == half != without
    assert half - without == pytest.approx(whole - half, rel=1e-4)
