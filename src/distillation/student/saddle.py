"""Finds plateaus of the loss and, if asked to, raises the learning rate there for a while.

The loss is compared to itself some steps ago, the gradient norm to its running median.
"""

import math
import statistics
from collections import deque
from typing import Any, Literal, NamedTuple

from src.distillation.config import SaddleOptions

LADDER = ((1.5, 50), (2.0, 50), (2.5, 75), (3.0, 100))  # factor of the learning rate, steps that it lasts
MOST_RISE = 0.05  # of the averaged loss; more than that is trouble, which a higher rate would make worse
SPANS_OF_AVERAGE = 5  # how many times the memory of the averaged loss fits into the window
NEVER = -1

Kind = Literal["plateau", "raised", "ended", "rolled_back"]


class Event(NamedTuple):
    """What the controller saw or did."""

    step: int
    kind: Kind
    loss: float  # averaged
    factor: float  # of the learning rate from this step on

    def __str__(self) -> str:
        texts = {
            "plateau": "the loss stands still",
            "raised": f"the loss stands still; the learning rate is multiplied by {self.factor:g}",
            "ended": "the learning rate is the scheduled one again",
            "rolled_back": "the loss rises; the learning rate is the scheduled one again",
        }
        return f"plateau controller at step {self.step}: {texts[self.kind]} (averaged loss {self.loss:.4f})"


class PlateauController:
    """Observes every step, and gives the factor of its learning rate.

    At a plateau the averaged loss fell by less than the threshold over the last `patience_steps`, did not rise either,
    and the gradient is not larger than usual. Each intervention that did not help is followed by a stronger one.
    """

    def __init__(self, options: SaddleOptions) -> None:
        self.settings = options
        window = self.settings.patience_steps
        self._weight = 1 / max(1.0, window / SPANS_OF_AVERAGE)  # of a new loss in the average
        self._losses: deque[float] = deque(maxlen=window + 1)  # averaged ones
        self._norms: deque[float] = deque(maxlen=window + 1)
        self._rung = NEVER  # of LADDER, where the last intervention stands
        self._raised_at = NEVER  # the first step of the current intervention
        self._loss_before = 0.0  # the averaged loss when it began
        self._rests_until = 0

    def observe(self, step: int, loss: float, grad_norm: float) -> list[Event]:
        """Events of this step; a step that is not finite has none, as it changes no weights."""
        if not self.settings.enabled or not math.isfinite(loss + grad_norm):
            return []
        average = self._losses[-1] + self._weight * (loss - self._losses[-1]) if self._losses else loss
        self._losses.append(average)
        self._norms.append(grad_norm)
        if self._raised_at != NEVER:
            return self._watch(step, average)
        return self._look(step, average)

    def factor(self, step: float) -> float:
        """What the learning rate of a step is multiplied by."""
        if self._raised_at == NEVER:
            return 1.0
        factor, duration = LADDER[self._rung]
        return factor if self._raised_at <= step < self._raised_at + duration else 1.0

    def _watch(self, step: int, average: float) -> list[Event]:
        """End the current intervention when its time is over, or at once if the loss rises."""
        is_over = step >= self._raised_at + LADDER[self._rung][1]
        if not is_over and average <= self._loss_before * (1 + MOST_RISE):
            return []
        self._raised_at, self._rests_until = NEVER, step + self.settings.cooldown_steps
        if not is_over:
            self._rung = NEVER  # the next one is the mildest again
        return [Event(step, "ended" if is_over else "rolled_back", average, 1.0)]

    def _look(self, step: int, average: float) -> list[Event]:
        if step < self._rests_until or not self._stands_still(average):
            return []
        if not self.settings.interventions_enabled:
            self._rests_until = step + self.settings.cooldown_steps
            return [Event(step, "plateau", average, 1.0)]
        has_helped = self._loss_before - average >= self.settings.loss_improvement_threshold * self._loss_before
        self._rung = 0 if has_helped else min(self._rung + 1, len(LADDER) - 1)
        self._raised_at, self._loss_before = step, average
        return [Event(step, "raised", average, self.factor(step))]

    def _stands_still(self, average: float) -> bool:
        before = self._losses[0]
        if len(self._losses) <= self.settings.patience_steps or before <= 0:
            return False
        improvement = (before - average) / before
        usual = statistics.median(self._norms)
        return -MOST_RISE < improvement < self.settings.loss_improvement_threshold and self._norms[-1] <= usual * (
            1 + self.settings.grad_norm_threshold
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "rung": self._rung,
            "raised_at": self._raised_at,
            "loss_before": self._loss_before,
            "rests_until": self._rests_until,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a window longer than this one's the newest values are kept."""
        for kept, values in ((self._losses, state["losses"]), (self._norms, state["norms"])):
            kept.clear()
            kept.extend(values)
        self._rung, self._raised_at = state["rung"], state["raised_at"]
        self._loss_before, self._rests_until = state["loss_before"], state["rests_until"]
