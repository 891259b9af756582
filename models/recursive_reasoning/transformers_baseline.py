"""The recurrence-free twin: a plain transformer that is applied once a supervision step.

B batch, L positions (prefix included), D hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from models.act import ActModel
from models.calls import NetworkCalls
from models.config import ArchConfig
from models.core import RecursiveCore


class OneLatent(NamedTuple):
    """The only state, (B, L, D)."""

    z_H: Tensor


class BaselineConfig(ArchConfig):
    """Its one network is H; cycles do not apply and may be left out."""

    H_cycles: int = 1
    L_cycles: int = 1
    compute_target_q: bool = False  # train q_continue, which the reference compares with but never trains

    def own_problems(self) -> list[str]:
        return [] if self.H_layers else ["transformers_baseline consists of the H network: set H_layers to 1 or more"]


class BaselineCore(RecursiveCore):
    """One pass of the network, all of it with gradient."""

    Latents = OneLatent
    levels = ("H_level",)

    def calls_per_step(self) -> int:
        return 1

    def calls_in_last_cycle(self) -> int:
        return 1

    def recurse(self, z: OneLatent, x: Tensor, call: NetworkCalls) -> OneLatent:  # x: (B, L, D)
        z_H = call(self.H_level, z.z_H + x)
        call.cycle_ended(z_H)
        return OneLatent(z_H)


class BaselineModel(ActModel):
    """The plain transformer under adaptive computation time; rows halt on q_halt > q_continue."""

    core_class = BaselineCore
    config_class = BaselineConfig
    config: BaselineConfig

    @property
    def halts_by_comparison(self) -> bool:
        return True

    @property
    def trains_q_continue(self) -> bool:
        return self.config.compute_target_q


Model_ACTV2 = BaselineModel  # id used by reference configs
