"""The loss table, and the head that turns a recursive model into losses and metrics.

B batch, S tokens, V vocabulary.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.common import IGNORE_LABEL_ID, Batch
from models.act import ActModel, Carry

LossFunction = Callable[[Tensor, Tensor], Tensor]


class _Stablemax(torch.autograd.Function):
    """-log of s(x_y) / sum s(x), where s(x) is 1 + x above zero and 1 / (1 - x) below.

    Written in logarithms, d log s / dx is 1 / (1 + |x|) on both sides, so float32 is exact to rounding and no point
    divides zero by zero (the two-branch formula does at x = 1).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        size = logits.abs() + 1
        s = torch.where(logits < 0, size.reciprocal(), size)
        total = s.sum(-1, keepdim=True)
        ctx.save_for_backward(logits, targets, total)
        chosen = s.gather(-1, targets.unsqueeze(-1))
        return (total.log() - chosen.log()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets, total = ctx.saved_tensors
        size = logits.abs() + 1
        slope = torch.where(logits < 0, size.square().reciprocal(), torch.ones_like(size))
        grad = slope / total
        index = targets.unsqueeze(-1)
        grad.scatter_add_(-1, index, -size.gather(-1, index).reciprocal())
        return grad * grads[0].unsqueeze(-1), None


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the stablemax law, per position; 0 where the label is ignored. Computed in float32 or wider."""
    supervised = labels != IGNORE_LABEL_ID
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss: Tensor = _Stablemax.apply(wide, torch.where(supervised, labels, 0).long())
    return torch.where(supervised, loss, 0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The usual cross-entropy, per position; 0 where the label is ignored. Computed in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = F.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORE_LABEL_ID, reduction="none"
    )
    return flat.view(labels.shape)


LOSSES: dict[str, LossFunction] = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}


def loss_function(name: str) -> LossFunction:
    if name not in LOSSES:
        raise ValueError(f"Unknown loss_type {name!r}; known are: {', '.join(LOSSES)}.")
    return LOSSES[name]


def smoothed(loss: Tensor, logits: Tensor, labels: Tensor, loss_type: str, smoothing: float) -> Tensor:
    """The loss against labels that leave the share `smoothing` of their weight to all tokens alike."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if loss_type == "stablemax_cross_entropy":  # is the softmax of these
        sign = torch.where(wide < 0, -1.0, 1.0)
        wide = sign * torch.log1p(sign * wide)
    of_all = torch.where(labels != IGNORE_LABEL_ID, -wide.log_softmax(-1).mean(-1), 0)
    return torch.lerp(loss, of_all, smoothing)


class ACTLossHead(nn.Module):
    """Runs one supervision step and scores it; loss and metrics are sums, `count` among them."""

    def __init__(
        self,
        model: ActModel,
        loss_type: str = "stablemax_cross_entropy",
        label_smoothing: float = 0.0,
        halt_loss_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss_type = loss_type
        self.loss_fn = loss_function(loss_type)
        model.loss_fn = self.loss_fn
        self.label_smoothing = label_smoothing
        self.halt_loss_weight = halt_loss_weight

    def initial_carry(self, batch: Batch) -> Carry:
        return self.model.initial_carry(batch)

    def forward(
        self, *, return_keys: Collection[str], carry: Carry, batch: Batch
    ) -> tuple[Carry, Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        carry, outputs = self.model(carry, batch)
        return self.score(carry, outputs, return_keys)

    def score(
        self, carry: Carry, outputs: dict[str, Tensor], return_keys: Collection[str]
    ) -> tuple[Carry, Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Losses and metrics of what a supervision step gave."""
        labels = carry.current_data["labels"]  # (B, S), those of the rows in flight
        supervised = labels != IGNORE_LABEL_ID
        num_tokens = supervised.sum(-1)
        divisor = num_tokens.clamp_min(1)

        with torch.no_grad():
            outputs["preds"] = outputs["logits"].argmax(-1)
            is_correct = supervised & (outputs["preds"] == labels)
            num_correct = is_correct.sum(-1)
            # A row without labels counts as solved for the halting head, as in the reference, but not in the metrics.
            row_solved = num_correct == num_tokens
            counted = carry.halted & (num_tokens > 0)
            metrics = {
                "count": counted.sum(),
                "accuracy": torch.where(counted, num_correct.float() / divisor, 0).sum(),
                "exact_accuracy": (counted & row_solved).sum(),
                "q_halt_accuracy": (counted & ((outputs["q_halt_logits"] >= 0) == row_solved)).sum(),
                "steps": torch.where(counted, carry.steps, 0).sum(),
            }

        losses = self.loss_fn(outputs["logits"], labels)
        if self.label_smoothing and self.training:
            losses = smoothed(losses, outputs["logits"], labels, self.loss_type, self.label_smoothing)
        lm_loss = (losses / divisor.unsqueeze(-1)).sum()
        q_halt_loss = _bce_sum(outputs["q_halt_logits"], row_solved.float())
        total = lm_loss + self.halt_loss_weight * q_halt_loss
        metrics |= {"lm_loss": lm_loss.detach(), "q_halt_loss": q_halt_loss.detach()}
        if "target_q_continue" in outputs:
            q_continue_loss = _bce_sum(outputs["q_continue_logits"], outputs["target_q_continue"])
            total = total + self.halt_loss_weight * q_continue_loss
            metrics["q_continue_loss"] = q_continue_loss.detach()

        known = carry.current_data | outputs
        unknown = sorted(set(return_keys) - known.keys())
        if unknown:
            raise ValueError(f"The model returns no {', '.join(unknown)}; it returns: {', '.join(sorted(known))}.")
        return carry, total, metrics, {key: known[key].detach() for key in return_keys}, carry.halted.all()


def _bce_sum(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
