"""A student's loss head: every supervision step learns from the text and from the teacher targets.

T supervised tokens of the batch, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dataset.common import Batch
from models.act import ActModel
from models.losses.distill import DistillScores, Divergence, TeacherTargets, distill_loss
from models.losses.text import HaltingTargets, StepLosses, Sums, Supervision, TextLossHead


class DistillHead(TextLossHead):
    """Mixes cross-entropy and divergence from the teacher; without targets it is cross-entropy alone.

    Its weights have the names of any text model's, so that whatever reads those reads a student. The halting head of a
    recursive student learns from the mixed loss of each token.
    """

    def __init__(self, model: ActModel, alpha: float, divergence: Divergence) -> None:
        super().__init__(model)
        self.alpha = alpha
        self.divergence = divergence

    def train_on(
        self,
        batch: Batch,
        at: Supervision,
        weights: Tensor,
        num_steps: int,
        targets: TeacherTargets | None = None,
    ) -> Sums:
        """Forward and backward of `num_steps` supervision steps, all with the same targets."""
        scores: list[DistillScores] = []
        steps = StepLosses(self.model.config, weights, num_steps)
        for _, answers in self.model.inner.unroll(batch, num_steps, detach=steps.at_once):
            loss, found, q = self.score(answers, at, targets, weights)
            steps.add(loss, self._mixed(found, targets), q)
            scores.append(found)
        steps.finish()
        return self._sums_of(at, targets, scores) | steps.halting.totals

    @torch.no_grad()
    def evaluate_on(
        self, batch: Batch, at: Supervision, num_steps: int, targets: TeacherTargets | None = None
    ) -> tuple[Sums, Tensor]:
        """The same sums without learning, and the predictions (T,) of the last step."""
        weights = at.weights("token", torch.ones((), device=at.labels.device))
        halting = HaltingTargets(self.model.config.halt_delta)
        scores: list[DistillScores] = []
        for _, answers in self.model.inner.unroll(batch, num_steps):
            _, found, q = self.score(answers[-1:], at, targets, weights)
            halting.loss_of_step(q, self._mixed(found, targets), weights)
            scores.append(found)
        return self._sums_of(at, targets, scores) | halting.totals, scores[-1].preds

    def score(
        self, answers: list[Tensor], at: Supervision, targets: TeacherTargets | None, weights: Tensor
    ) -> tuple[Tensor, DistillScores, Tensor]:
        """Mean loss of the answers, scores and halting logits of the last."""
        core = self.model.inner
        total = torch.zeros((), device=weights.device)
        for answer in answers:
            hidden = core.hidden(answer).flatten(0, 1)[at.places]  # (T, D)
            loss, scores = distill_loss(
                hidden,
                core.lm_head.weight,
                at.labels,
                targets,
                weights,
                alpha=self.alpha,
                divergence=self.divergence,
            )
            total = total + loss / len(answers)
        q: Tensor = core.q_head(hidden.detach())[:, 0].float()
        return total, scores, q

    def _mixed(self, scores: DistillScores, targets: TeacherTargets | None) -> Tensor:
        """The loss of each token."""
        return scores.ce if targets is None else self.alpha * scores.ce + (1 - self.alpha) * scores.kd

    def _sums_of(self, at: Supervision, targets: TeacherTargets | None, steps: Sequence[DistillScores]) -> Sums:
        """Sums over tokens, of the last step and, where there are several, of each (`depth_2/…`)."""
        sums = {
            "count": torch.tensor(len(at.lengths)),
            "tokens": torch.tensor(len(at.places)),
            "steps": torch.tensor(len(steps) * len(at.lengths)),
        }
        if targets is not None:
            sums["taught_tokens"] = targets.valid.sum()
        for number, scores in enumerate(steps, start=1):
            own = {"ce_loss": scores.ce.sum(), "right": (scores.preds == at.labels).sum()}
            if targets is not None:
                own["kd_loss"] = scores.kd.sum()
                own["agreed"] = scores.agrees.sum()
            if len(steps) > 1:
                sums |= {f"depth_{number}/{name}": value for name, value in own.items()}
        return sums | own
