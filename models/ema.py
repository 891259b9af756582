"""An exponential moving average of the trained parameters, swapped in for evaluation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps one averaged copy of every parameter that requires gradient.

    Up to the update number `start` the average is the weights as they are. `is_warmed_up`: the rate grows with the
    number of updates, so that a short run does not average over its start.
    """

    def __init__(self, module: nn.Module, rate: float, is_warmed_up: bool = False, start: int = 0) -> None:
        self.rate = rate
        self.start = start
        self.is_warmed_up = is_warmed_up
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}
        # A tied weight has several names and is averaged once, under the first one.
        first = {p: name for name, p in self.parameters.items()}
        every = module.named_parameters(remove_duplicate=False)
        self.first_names = {name: first[p] for name, p in every if p.requires_grad}

    def rate_of(self, number: int) -> float:
        """What the update of this number, counted from 1, keeps of the average."""
        if number <= self.start:
            return 0.0
        return min(self.rate, (1 + number) / (10 + number)) if self.is_warmed_up else self.rate

    @torch.no_grad()
    def update(self, number: int) -> None:
        if self.shadow:
            live = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.shadow.values()), live, 1 - self.rate_of(number))

    def share_of_start(self, updates: int) -> float:
        """The weight that the first parameters still have in the average after so many updates."""
        return math.prod(self.rate_of(number) for number in range(1, updates + 1)) if self.shadow else 0.0

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the module holds the averaged parameters; buffers stay the live ones."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange which memory is whose; nothing is copied."""
        for name, parameter in self.parameters.items():
            parameter.data, self.shadow[name] = self.shadow[name], parameter.data

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
