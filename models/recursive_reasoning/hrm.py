"""HRM: a slow network H and a fast network L, each with its own weights.

B batch, L positions (prefix included), D hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from models.act import ActModel
from models.calls import NetworkCalls
from models.config import ArchConfig
from models.core import RecursiveCore


class TwoLatents(NamedTuple):
    """State of the slow network and of the fast one, each (B, L, D)."""

    z_H: Tensor
    z_L: Tensor


class HierarchicalConfig(ArchConfig):
    """HRM needs blocks in both networks; it always compares q_halt with q_continue, whatever no_ACT_continue says."""

    no_ACT_continue: bool = False

    def own_problems(self) -> list[str]:
        return [] if self.H_layers else ["hrm has a second network: set H_layers to 1 or more"]


class HierarchicalCore(RecursiveCore):
    """The fast network runs L_cycles times for every update of the slow one."""

    Latents = TwoLatents
    levels = ("H_level", "L_level")

    def calls_in_last_cycle(self) -> int:
        return 2  # one update of each network: HRM's one-step gradient

    def recurse(self, z: TwoLatents, x: Tensor, call: NetworkCalls) -> TwoLatents:  # x: (B, L, D)
        z_H, z_L = z
        for _ in range(self.depth.H_cycles):
            for _ in range(self.depth.L_cycles):
                z_L = call(self.L_level, z_L + (z_H + x))
            z_H = call(self.H_level, z_H + z_L)
            call.cycle_ended(z_H)
        return TwoLatents(z_H, z_L)


class HierarchicalModel(ActModel):
    """HRM under adaptive computation time with a learned value of going on."""

    core_class = HierarchicalCore
    config_class = HierarchicalConfig

    @property
    def halts_by_comparison(self) -> bool:
        return True


HierarchicalReasoningModel_ACTV1 = HierarchicalModel  # id used by reference configs
