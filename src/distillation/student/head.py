"""A student's loss head: every supervision step learns from the text and from the teacher targets.

T supervised tokens of the batch, D hidden.
"""

from torch import Tensor

from models.act import ActModel
from models.losses.distill import DistillScores, Divergence, TeacherTargets, distill_loss
from models.losses.text import Sums, Supervision, TextLossHead


class DistillHead(TextLossHead):
    """Mixes cross-entropy and divergence from the teacher; without targets it is cross-entropy alone.

    Its weights have the names of any text model's, so that whatever reads those reads a student. The halting head of a
    recursive student learns from the mixed loss of each token.
    """

    def __init__(self, model: ActModel, alpha: float, divergence: Divergence) -> None:
        super().__init__(model)
        self.alpha = alpha
        self.divergence = divergence

    def score_answer(
        self, hidden: Tensor, at: Supervision, weights: Tensor, targets: TeacherTargets | None
    ) -> tuple[Tensor, DistillScores]:
        head = self.model.inner.lm_head.weight
        return distill_loss(hidden, head, at.labels, targets, weights, alpha=self.alpha, divergence=self.divergence)

    def sums_of_step(self, at: Supervision, scores: DistillScores, targets: TeacherTargets | None) -> Sums:
        sums = {"ce_loss": scores.ce.sum(), "right": (scores.preds == at.labels).sum()}
        if targets is not None:
            sums |= {"kd_loss": scores.kd.sum(), "agreed": scores.agrees.sum(), "taught_tokens": targets.valid.sum()}
        return sums

    def reports_depths(self, num_steps: int, is_training: bool) -> bool:
        return num_steps > 1
