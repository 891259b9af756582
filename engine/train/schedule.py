"""The learning rate of an optimizer step: after a warm-up either one decay, or a plateau and cosines that restart.

Steps count from 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DecaySchedule:
    """Linear warm-up, then a line or a cosine (half of one by default) from the base rate to `min_ratio` of it."""

    warmup_steps: int
    total_steps: int
    min_ratio: float
    num_cycles: float = 0.5
    is_linear: bool = False

    def at(self, step: float, base: float) -> float:
        if step < self.warmup_steps:
            return base * step / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        wave = 1 - progress if self.is_linear else 0.5 * (1 + math.cos(2 * math.pi * self.num_cycles * progress))
        return base * (self.min_ratio + max(0.0, (1 - self.min_ratio) * wave))


@dataclass(frozen=True)
class RestartSchedule:
    """Linear warm-up, a plateau, then cosines from the base rate to `min_lr`, each `cosine_growth` times as long as the
    one before.

    `factor` multiplies the rate of a step, whatever part of the schedule it is in.
    """

    warmup_steps: int
    plateau_steps: int
    cosine_steps: int
    cosine_growth: int
    min_lr: float
    factor: Callable[[float], float] | None = None

    def at(self, step: float, base: float) -> float:
        rate, place = base, step - self.warmup_steps - self.plateau_steps
        if step < self.warmup_steps:
            rate = base * step / self.warmup_steps
        elif place > 0:
            rate = self.min_lr + (base - self.min_lr) * 0.5 * (1 + math.cos(math.pi * self._progress(place)))
        return rate if self.factor is None else rate * self.factor(step)

    def _progress(self, place: float) -> float:
        """How much of its cosine has passed, from 0 to below 1, so many steps after the first one began."""
        length = self.cosine_steps
        if self.cosine_growth == 1:
            return place % length / length
        while place >= length:
            place -= length
            length *= self.cosine_growth
        return place / length
