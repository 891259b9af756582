"""A student's loss head: every supervision step learns from the text and from what the teacher says of it.

B rows, L positions, T supervised tokens of the batch, K ids that the teacher tells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.act import ActModel, Batch
from models.layers import weights_cast_once
from models.losses.chunked import TokenScores
from models.losses.text import HaltingTargets, Sums, Supervised, Supervision, TextLossHead
from src.distillation.student.losses import DistillScores, Divergence, distill_loss
from src.distillation.targets.signal import TeacherSignal


class DistillHead(TextLossHead):
    """Mixes cross-entropy and divergence from the teacher; without a signal it is cross-entropy alone.

    Its weights have the names of any text model's, so that whatever reads those reads a student. The halting head of a
    recursive student learns from the mixed loss of each token.
    """

    def __init__(self, model: ActModel, alpha: float, divergence: Divergence) -> None:
        super().__init__(model)
        self.alpha = alpha
        self.divergence = divergence

    def learn(self, batch: Batch, at: Supervision, signal: TeacherSignal | None, total: Tensor, num_steps: int) -> Sums:
        """Forward and backward of `num_steps` supervision steps, each with what is one and the same signal.

        `total` is the number of tokens that the loss is a mean over.
        """
        weights, taught = self._weights(at, signal, total)
        scores: list[DistillScores] = []

        def supervised(answers: list[Tensor]) -> Supervised:
            loss, found, q = self._scored(answers, at, signal, weights, taught)
            scores.append(found)
            return loss, TokenScores(self._mixed(found, signal), found.preds), q

        _, halting = self.unroll(batch, weights, num_steps, supervised)
        return self._sums_of(at, signal, scores) | halting.sums()

    @torch.no_grad()
    def judge(self, batch: Batch, at: Supervision, signal: TeacherSignal | None, num_steps: int) -> tuple[Sums, Tensor]:
        """The same sums without learning, and what the last step says at the supervised places (T,)."""
        core = self.model.inner
        weights, taught = self._weights(at, signal, torch.ones((), device=at.labels.device))
        halting = HaltingTargets(self.model.config.halt_delta)
        scores: list[DistillScores] = []
        with weights_cast_once(core, core.dtype):
            x, around = core.embed(batch), core.surroundings(batch)
            z = core.initial_latents(x)
            for _ in range(num_steps):
                z, answers = core.step(z, x, around)
                _, found, q = self._scored(answers[-1:], at, signal, weights, taught)
                halting.loss_of_step(q, self._mixed(found, signal), weights)
                scores.append(found)
        return self._sums_of(at, signal, scores) | halting.sums(), scores[-1].preds

    def _weights(self, at: Supervision, signal: TeacherSignal | None, total: Tensor) -> tuple[Tensor, Tensor]:
        """What each token counts; to the teacher's part only those that it says something of."""
        weights = at.weights("token", total)
        return weights, weights if signal is None else weights * signal.valid[0]

    def _scored(
        self, answers: list[Tensor], at: Supervision, signal: TeacherSignal | None, weights: Tensor, taught: Tensor
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
                signal,
                ce_weights=weights,
                kd_weights=taught,
                alpha=1.0 if signal is None else self.alpha,
                divergence=self.divergence,
            )
            total = total + loss / len(answers)
        q: Tensor = core.q_head(hidden.detach())[:, 0].float()
        return total, scores, q

    def _mixed(self, scores: DistillScores, signal: TeacherSignal | None) -> Tensor:
        """The loss of each token."""
        if signal is None:
            return scores.ce
        return self.alpha * scores.ce + (1 - self.alpha) * scores.kd * signal.valid[0]

    def _sums_of(self, at: Supervision, signal: TeacherSignal | None, steps: Sequence[DistillScores]) -> Sums:
        """Sums over tokens, of the last step and, where there are several, of each (`depth_2/…`)."""
        sums = {
            "count": torch.tensor(len(at.lengths)),
            "tokens": torch.tensor(len(at.places)),
            "steps": torch.tensor(len(steps) * len(at.lengths)),
        }
        if signal is not None:
            sums["taught_tokens"] = signal.valid.sum()
        for number, scores in enumerate(steps, start=1):
            own = {"ce_loss": scores.ce.sum(), "right": (scores.preds == at.labels).sum()}
            if signal is not None:
                own["kd_loss"] = (scores.kd * signal.valid[0]).sum()
                own["agreed"] = (scores.agrees & signal.valid[0]).sum()
            if len(steps) > 1:
                sums |= {f"depth_{number}/{name}": value for name, value in own.items()}
        return sums | own
