"""TRM: one small network refines a latent z_L, then the answer z_H.

B batch, L positions (prefix included), D hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from models.calls import NetworkCalls
from models.recursive_reasoning.chains import ChainsCore, ChainsModel


class TwoLatents(NamedTuple):
    """The answer so far and the thought behind it, each (B, L, D)."""

    z_H: Tensor
    z_L: Tensor


class TinyRecursiveCore(ChainsCore):
    """H_cycles times: think L_cycles times about question and answer, then improve the answer."""

    Latents = TwoLatents

    def recurse(self, z: TwoLatents, x: Tensor, call: NetworkCalls) -> TwoLatents:  # x: (B, L, D)
        z_H, z_L = z
        for _ in range(self.depth.H_cycles):
            for _ in range(self.depth.L_cycles):
                z_L = call(self.L_level, z_L + (z_H + x))
            z_H = call(self.L_level, z_H + z_L)
            call.cycle_ended(z_H)
        return TwoLatents(z_H, z_L)


class TinyRecursiveModel(ChainsModel):
    """TRM under adaptive computation time."""

    core_class = TinyRecursiveCore


TinyRecursiveReasoningModel_ACTV1 = TinyRecursiveModel  # id used by reference configs
