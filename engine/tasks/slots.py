"""The rows in flight of text with persistent state, one a slot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dataset.common import Batch
from models.core import Latents
from models.losses.text import Supervision


@dataclass
class Slots:
    """The rows in flight on this rank; the first dimension of every tensor is the slot.

    Latents and losses are on the device, all else is on the host, which decides about the rows.
    """

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


class Work(NamedTuple):
    """What a step computes of the slots of a micro-batch; found on the host, and sent to the device."""

    rows: Tensor  # numbers of the slots
    data: Batch  # of these and no others, as all that follows
    at: Supervision
    is_fresh: Tensor  # rows that have had no step yet
    had_step: Tensor  # supervised tokens, by number, of the other ones


def work_on(part: Slots, *, is_first: bool, keeps_shape: bool) -> Work:
    """Slots without a row are not computed, unless the shape is to be kept, or, in the first part, to have a gradient of
    every weight."""
    rows = part.is_busy.nonzero().squeeze(-1)
    if not len(rows) and is_first:
        rows = torch.zeros(1, dtype=torch.long)
    if keeps_shape and len(rows):
        rows = torch.arange(len(part.steps))
    is_whole = len(rows) == len(part.steps)
    data = part.data if is_whole else {name: value[rows] for name, value in part.data.items()}
    at, steps = Supervision.of(data), part.steps[rows]
    had_step = (steps > 0)[at.places // data["labels"].shape[1]].nonzero().squeeze(-1)
    return Work(rows, data, at, steps == 0, had_step)
