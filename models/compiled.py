"""Network calls in compiled code."""

import torch
from torch import Tensor, nn

from models.calls import plain_call
from models.layers import AttentionContext


def _in_one_layout(level: nn.Module, state: Tensor, context: AttentionContext) -> Tensor:
    return plain_call(level, state, context).contiguous()


class CompiledCalls:
    """Network calls in compiled code, which knows two kinds of them: with gradient and without.

    The code is of one network call, so that neither the number of calls nor how many carry gradient is a part of it.
    Whether a state wants a gradient and how it lies in memory would be: all come alike.
    """

    def __init__(self) -> None:
        self.compiled = torch.compile(_in_one_layout, dynamic=False)

    def __call__(self, level: nn.Module, state: Tensor, context: AttentionContext) -> Tensor:
        if torch.is_grad_enabled() and not state.requires_grad:  # the last call, where the one before had no gradient
            state = state.detach().requires_grad_()
        return self.compiled(level, state, context)
