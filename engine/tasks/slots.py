"""The rows in flight of text with persistent state, one a slot."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dataset.common import Batch
from models.core import Latents


@dataclass
class Slots:
    """The rows in flight on this rank; the first dimension of every tensor is the slot."""

    data: Batch
    latents: Latents
    steps: Tensor  # supervision steps that the row has had
    depth: Tensor  # steps after which it is retired at the latest
    is_busy: Tensor
    losses: Tensor  # (rows, S) of the step before, where supervised


def map_slots(function: Callable[..., Tensor], *slots: Slots) -> Slots:
    """The slots that `function` makes of the tensors at the same place of all given ones."""
    first = slots[0]
    return Slots(
        data={name: function(*(each.data[name] for each in slots)) for name in first.data},
        latents=type(first.latents)(*(function(*z) for z in zip(*(each.latents for each in slots), strict=True))),
        steps=function(*(each.steps for each in slots)),
        depth=function(*(each.depth for each in slots)),
        is_busy=function(*(each.is_busy for each in slots)),
        losses=function(*(each.losses for each in slots)),
    )
