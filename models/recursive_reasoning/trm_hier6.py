"""TRM with six low-level latents, one for each inner step.

B batch, L positions (prefix included), D hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from models.act import ActModel
from models.calls import NetworkCalls
from models.config import ArchConfig
from models.core import RecursiveCore


class SevenLatents(NamedTuple):
    """The answer and six thoughts, each (B, L, D)."""

    z_H: Tensor
    z_L1: Tensor
    z_L2: Tensor
    z_L3: Tensor
    z_L4: Tensor
    z_L5: Tensor
    z_L6: Tensor


class SixThoughtsConfig(ArchConfig):
    """Six latents serve at most six inner steps; with fewer, the idle ones keep their start but still count."""

    def own_problems(self) -> list[str]:
        most = max([self.L_cycles, *(stage.L_cycles or 0 for stage in self.depth_curriculum)])
        if most <= 6:
            return []
        return [f"trm_hier6 has six low-level latents, found L_cycles={most}. Use L_cycles of at most 6"]


class SixThoughtsCore(RecursiveCore):
    """Each inner step renews its own latent from the sum of all six, the answer and the question."""

    Latents = SevenLatents

    def recurse(self, z: SevenLatents, x: Tensor, call: NetworkCalls) -> SevenLatents:  # x: (B, L, D)
        z_H, *thoughts = z
        for _ in range(self.depth.H_cycles):
            for i in range(self.depth.L_cycles):
                thoughts[i] = call(self.L_level, _sum(thoughts) + (z_H + x))
            z_H = call(self.L_level, z_H + _sum(thoughts))
            call.cycle_ended(z_H)
        return SevenLatents(z_H, *thoughts)


def _sum(states: list[Tensor]) -> Tensor:
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total


class SixThoughtsModel(ActModel):
    """The six-latent TRM under adaptive computation time."""

    core_class = SixThoughtsCore
    config_class = SixThoughtsConfig


TinyRecursiveReasoningModel_ACTV1 = SixThoughtsModel  # id used by reference configs
