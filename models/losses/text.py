"""The loss head of text: all supervision steps of a batch, scored at supervised tokens only.

B rows, S tokens a row, T supervised tokens of the batch, D hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.common import IGNORE_LABEL_ID, Batch
from models.act import ActModel
from models.core import Latents, detached
from models.losses.chunked import ScoreChunk, chunked_cross_entropy, dense_cross_entropy, scored_
from models.losses.puzzles import loss_function

Sums = dict[str, Tensor]
HALT_BINS = 100  # of the histogram from which the area under the halting head's ROC curve is read


class Supervision(NamedTuple):
    """Where a batch is supervised; found once and used at every depth."""

    places: Tensor  # (T,) places in the flattened (B * S)
    labels: Tensor  # (T,)
    document: Tensor  # (T,) number of the document that a token belongs to
    lengths: Tensor  # (documents,) supervised tokens of each

    @classmethod
    def of(cls, batch: Batch) -> "Supervision":
        labels = batch["labels"].flatten()
        places = (labels != IGNORE_LABEL_ID).nonzero().squeeze(-1)
        rows, width = batch["labels"].shape
        row = torch.arange(rows, device=labels.device).repeat_interleave(width)[places]
        if "documents" in batch:
            row = row * width + batch["documents"].flatten()[places]
        _, document, lengths = row.unique(return_inverse=True, return_counts=True)
        return cls(places, labels[places].long(), document, lengths)

    def per_document(self, values: Tensor) -> Tensor:
        """Sums of token values over each document."""
        totals = torch.zeros(len(self.lengths), dtype=torch.float32, device=values.device)
        return totals.index_add_(0, self.document, values.float())

    def weights(self, reduction: str, total: Tensor) -> Tensor:
        """What each token counts: `token` a share of all tokens, `sequence` a share of its document's share."""
        if reduction == "token":
            return torch.ones(len(self.places), device=self.labels.device) / total
        return 1 / (self.lengths[self.document] * total)


class TextLossHead(nn.Module):
    """Cross-entropy at every supervision step with equal weight, and a halting head that learns what a step is worth.

    The halting head reads each token's own detached latent and learns whether any later step will lower that token's
    loss by more than `halt_delta`. Its gradient never reaches the trunk.
    """

    def __init__(self, model: ActModel, loss_type: str = "softmax_cross_entropy", chunked: bool = True) -> None:
        super().__init__()
        self.loss_fn = loss_function(loss_type)
        self.model = model
        self.is_stablemax = loss_type == "stablemax_cross_entropy"
        self.chunked = chunked
        self.score_chunk: ScoreChunk = scored_

    def train_on(self, batch: Batch, at: Supervision, weights: Tensor, num_steps: int, targets: Any = None) -> Sums:
        """Forward and backward of `num_steps` supervision steps, each of which counts alike; with supervise=last only
        the last one counts.

        With `detach_between_steps` the backward of each runs at once, so that memory does not grow with depth;
        otherwise one backward of the sum runs at the end.
        """
        config, found = self.model.config, []
        first_scored, counted = (num_steps, 1) if config.supervise == "last" else (1, num_steps)
        halting, total = HaltingTargets(config.halt_delta), torch.zeros((), device=weights.device)
        unrolled = self.model.inner.unroll(batch, num_steps, detach=config.detach_between_steps)
        for number, (_, answers) in enumerate(unrolled, start=1):
            loss, scores, q = self.score(answers, at, weights, targets, learns=number >= first_scored)
            halting.add_step(q, scores.losses)
            loss = loss / counted
            if number == num_steps:  # only now is it known what each step was worth
                loss = loss + halting.loss(weights) / max(1, num_steps - 1)
            if config.detach_between_steps:
                loss.backward()
            else:
                total = total + loss
            found.append(scores)
        if not config.detach_between_steps:
            total.backward()
        return self._report(at, found, targets, is_training=True) | halting.totals

    def persistent_step(
        self,
        batch: Batch,
        z: Latents,
        is_fresh: Tensor,
        at: Supervision,
        weights: Tensor,
        old_losses: Tensor,
        had_step: Tensor,
    ) -> tuple[Latents, Tensor, Tensor, Sums]:
        """Forward and backward of one supervision step of persistent latents; rows marked fresh start from scratch.

        The halting head learns of this step alone what it brought: no later one is known here.
        `old_losses` (T,) are those of the step before, for the tokens that `had_step` picks. Returns detached latents, the losses
        and halting logits (T,) of this step, and sums.
        """
        core = self.model.inner
        before = core.hidden(getattr(z, core.answer)).flatten(0, 1)[at.places]
        with closing(core.unroll(batch, 1, carried=(z, is_fresh))) as steps:
            z, answers = next(steps)
            loss, scores, q = self.score(answers, at, weights)
            halting = HaltingTargets(self.model.config.halt_delta)
            halting.add_step(core.q_head(before)[:, 0].float()[had_step], old_losses[had_step])
            halting.add_step(q[had_step], scores.losses[had_step])
            loss = loss + halting.loss(weights[had_step])
            loss.backward()
        sums = self._report(at, [scores], None, is_training=True) | halting.totals
        return detached(z), scores.losses, q.detach(), sums

    def score(
        self, answers: list[Tensor], at: Supervision, weights: Tensor, targets: Any = None, learns: bool = True
    ) -> tuple[Tensor, Any, Tensor]:
        """Mean loss of the answers of a step, without gradient unless it `learns`; scores and halting logits of the last."""
        core = self.model.inner
        total = torch.zeros((), device=weights.device)
        for answer in answers:
            hidden = core.hidden(answer).flatten(0, 1)[at.places]  # (T, D)
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                loss, scores = self.score_answer(hidden, at, weights, targets)
            total = total + loss / len(answers)
        q: Tensor = core.q_head(hidden.detach())[:, 0].float()
        return total, scores, q

    @torch.no_grad()
    def depths(
        self, batch: Batch, at: Supervision, num_steps: int, targets: Any = None
    ) -> Iterator[tuple[Any, Tensor]]:
        """Scores and halting logits after each supervision step, without gradient."""
        weights = at.weights("token", torch.ones((), device=at.labels.device))
        for _, answers in self.model.inner.unroll(batch, num_steps):
            _, scores, q = self.score(answers[-1:], at, weights, targets)
            yield scores, q

    def evaluate_on(self, batch: Batch, at: Supervision, num_steps: int, targets: Any = None) -> tuple[Sums, Tensor]:
        """Sums without learning, and the predictions (T,) of the last step."""
        halting, found = HaltingTargets(self.model.config.halt_delta), []
        weights = at.weights("token", torch.ones((), device=at.labels.device))
        for scores, q in self.depths(batch, at, num_steps, targets):
            halting.add_step(q, scores.losses)
            found.append(scores)
        halting.loss(weights)
        return self._report(at, found, targets, is_training=False) | halting.totals, scores.preds

    def _report(self, at: Supervision, steps: Sequence[Any], targets: Any, *, is_training: bool) -> Sums:
        """Sums over the batch of the last step and, where wanted, of each (`depth_2/…`)."""
        documents = len(at.lengths)
        sums = {
            "count": torch.tensor(documents),
            "tokens": torch.tensor(len(at.places)),
            "steps": torch.tensor(len(steps) * documents),
        }
        if not self.reports_depths(len(steps), is_training):
            return sums | self.sums_of_step(at, steps[-1], targets)
        for number, scores in enumerate(steps, start=1):
            own = self.sums_of_step(at, scores, targets)
            sums |= {f"depth_{number}/{name}": value for name, value in own.items()}
        return sums | own

    # What a loss decides; a head with another one overrides these three. `targets` and scores are the loss's own.
    def score_answer(self, hidden: Tensor, at: Supervision, weights: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Loss of the hidden states (T, D) of one answer, and its scores: losses (T,) and predictions (T,) at least."""
        head = self.model.inner.lm_head
        if self.chunked:
            return chunked_cross_entropy(
                hidden, head.weight, at.labels, weights, is_stablemax=self.is_stablemax, score=self.score_chunk
            )
        return dense_cross_entropy(head(hidden), at.labels, weights, self.loss_fn)

    def sums_of_step(self, at: Supervision, scores: Any, targets: Any) -> Sums:
        is_right = (scores.preds == at.labels).float()
        right = at.per_document(is_right)
        return {
            "accuracy": (right / at.lengths).sum(),
            "exact_accuracy": (right == at.lengths).sum(),
            "token_accuracy": is_right.sum(),
            "lm_loss": (at.per_document(scores.losses) / at.lengths).sum(),
            "token_loss": scores.losses.sum(),
        }

    def reports_depths(self, num_steps: int, is_training: bool) -> bool:
        return not is_training


class HaltingTargets:
    """Follows one batch over its steps; after the last one it is known what the halting head should have said at each."""

    def __init__(self, delta: float) -> None:
        self.delta = delta
        self.steps: list[tuple[Tensor, Tensor]] = []  # halting logits and losses
        self.totals: Sums = {}

    def add_step(self, q: Tensor, losses: Tensor) -> None:
        self.steps.append((q, losses))

    def loss(self, weights: Tensor) -> Tensor:
        """Loss of the halting logits of all steps but the last, whose worth is not known.

        A token may halt where no later step lowers its loss by more than `delta`: that the next one alone brings
        nothing is no reason, since an answer may need several.
        """
        total = torch.zeros((), device=weights.device)
        least: Tensor | None = None  # loss that a later step reaches
        for q, losses in reversed(self.steps):
            if least is None:
                least = losses
                continue
            may_halt = (least >= losses - self.delta).float()
            loss = F.binary_cross_entropy_with_logits(q, may_halt, reduction="none")
            self._count(q.detach(), may_halt, loss.detach())
            total = total + (loss * weights).sum()
            least = torch.minimum(least, losses)
        return total

    def _count(self, q: Tensor, may_halt: Tensor, loss: Tensor) -> None:
        bins = (torch.sigmoid(q).nan_to_num() * HALT_BINS).long().clamp_max(HALT_BINS - 1)
        empty = torch.zeros(HALT_BINS, device=q.device)
        found = {
            "q_halt_count": torch.tensor(len(q)),
            "q_halt_loss": loss.sum(),
            "q_halt_accuracy": ((q >= 0) == may_halt.bool()).sum(),
            "q_halt_wanted": empty.index_add(0, bins, may_halt),
            "q_halt_unwanted": empty.index_add(0, bins, 1 - may_halt),
        }
        self.totals = {name: self.totals.get(name, 0) + value for name, value in found.items()}


def area_under_roc(wanted: list[float], unwanted: list[float]) -> float:
    """How often a token that may halt gets a higher halting probability than one that may not; ties count half."""
    better, area = 0.0, 0.0
    for w, u in zip(wanted, unwanted, strict=True):
        area += w * (better + u / 2)
        better += u
    pairs = sum(wanted) * sum(unwanted)
    return area / pairs if pairs else float("nan")
