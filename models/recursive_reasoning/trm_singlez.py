"""TRM with a single latent: thought and answer share one state.

B batch, L positions (prefix included), D hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from models.act import ActModel
from models.calls import NetworkCalls
from models.core import RecursiveCore


class OneLatent(NamedTuple):
    """The only state, (B, L, D)."""

    z_L: Tensor


class SingleLatentCore(RecursiveCore):
    """H_cycles times: look at the question L_cycles times, then once without it."""

    Latents = OneLatent
    answer = "z_L"

    def recurse(self, z: OneLatent, x: Tensor, call: NetworkCalls) -> OneLatent:  # x: (B, L, D)
        (z_L,) = z
        for _ in range(self.depth.H_cycles):
            for _ in range(self.depth.L_cycles):
                z_L = call(self.L_level, z_L + x)
            z_L = call(self.L_level, z_L)
            call.cycle_ended(z_L)
        return OneLatent(z_L)


class SingleLatentModel(ActModel):
    """The one-latent TRM under adaptive computation time."""

    core_class = SingleLatentCore


TinyRecursiveReasoningModel_ACTV1 = SingleLatentModel  # id used by reference configs
