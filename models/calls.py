"""How the network calls of a supervision step are made, which of them carry gradient, and what they count."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.attention import AttentionMask
from models.layers import AttentionContext

Network = Callable[[nn.Module, Tensor, AttentionContext], Tensor]  # how one network call is made


def plain_call(level: nn.Module, state: Tensor, context: AttentionContext) -> Tensor:
    answer: Tensor = level(state, context)
    return answer


class NetworkCalls:
    """Makes the network calls of one supervision step; only the last `with_grad` of `total` carry gradient."""

    def __init__(self, context: AttentionContext, total: int, with_grad: int, network: Network = plain_call) -> None:
        self.context = context
        self.network = network
        self.first_with_grad = total - with_grad
        self.made = 0
        self.answers: list[
            Tensor
        ] = []  # the answer after each cycle that carries gradient; of a step without, the last

    def __call__(self, level: nn.Module, state: Tensor) -> Tensor:
        carries_gradient = torch.is_grad_enabled() and self.made >= self.first_with_grad
        self.made += 1
        with torch.set_grad_enabled(carries_gradient):
            return self.network(level, state if carries_gradient else state.detach(), self.context)

    def cycle_ended(self, answer: Tensor) -> None:
        """The recursion has a new answer; it may be supervised."""
        if self.made <= self.first_with_grad:
            self.answers.clear()
        self.answers.append(answer)


class CountedCalls(NetworkCalls):
    """Stands in for the calls of a supervision step: computes nothing and counts the passes of each network."""

    def __init__(self, total: int, with_grad: int) -> None:
        super().__init__(AttentionContext(None, AttentionMask()), total, with_grad)
        self.passes: Counter[nn.Module] = Counter()

    def __call__(self, level: nn.Module, state: Tensor) -> Tensor:
        self.passes[level] += 3 if self.made >= self.first_with_grad else 1
        self.made += 1
        return state
