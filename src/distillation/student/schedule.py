"""The learning rate of a student: warm-up, a plateau, cosines that restart, and on top what a plateau of the loss calls for."""

import math
from dataclasses import dataclass

from src.distillation.student.saddle import PlateauController


@dataclass(frozen=True)
class StudentSchedule:
    """All lengths in optimizer steps, which are counted from 1; a batch of the config is a part of one.

    Each cosine falls from the base rate to `min_lr` and is `cosine_growth` times as long as the one before it.
    """

    warmup_steps: int
    plateau_steps: int
    cosine_steps: int
    cosine_growth: int
    min_lr: float
    controller: PlateauController | None = None  # multiplies the rate, so that no schedule can undo what it does

    def at(self, step: float, base: float) -> float:
        factor = 1.0 if self.controller is None else self.controller.factor(step)
        return self.planned(step, base) * factor

    def planned(self, step: float, base: float) -> float:
        """The rate that nothing interferes with."""
        if step < self.warmup_steps:
            return base * step / self.warmup_steps
        place = step - self.warmup_steps - self.plateau_steps
        if place <= 0:
            return base
        return self.min_lr + (base - self.min_lr) * 0.5 * (1 + math.cos(math.pi * self._progress(place)))

    def _progress(self, place: float) -> float:
        """How much of its cosine has passed, from 0 to below 1, so many steps after the first one began."""
        length = self.cosine_steps
        if self.cosine_growth == 1:
            return place % length / length
        while place >= length:
            place -= length
            length *= self.cosine_growth
        return place / length
