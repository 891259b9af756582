"""An exponential moving average of the trained parameters, swapped in for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps one averaged copy of every parameter that requires gradient."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        self.rate = rate
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}
        # A tied weight has several names and is averaged once, under the first one.
        first = {p: name for name, p in self.parameters.items()}
        every = module.named_parameters(remove_duplicate=False)
        self.first_names = {name: first[p] for name, p in every if p.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        if self.shadow:
            torch._foreach_lerp_(
                list(self.shadow.values()), [p.detach() for p in self.parameters.values()], 1 - self.rate
            )

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the module holds the averaged parameters; buffers stay the live ones."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            live = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(live)

    def state_dict(self) -> dict[str, Tensor]:
        """Every weight under all of its names, so that it can stand in for the module's own."""
        return {name: self.shadow[first] for name, first in self.first_names.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.first_names.keys():
            differing = sorted(state.keys() ^ self.first_names.keys())
            raise ValueError(
                f"The averaged weights are of another model ({', '.join(differing[:5])} on one side only). "
                "Resume with the config the run began with."
            )
        for name, average in self.shadow.items():
            average.copy_(state[name])
