"""Copies between the host and a device."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Generic

import torch
from torch import Tensor

from engine.runtime.devices import Data, Runtime, map_tensors


class Sent(Generic[Data]):
    """What is on its way to the device, on CUDA beside what that computes."""

    def __init__(self, data: Data, runtime: Runtime) -> None:
        self.device = runtime.device
        self.stream = side_stream(runtime.device) if runtime.device.type == "cuda" else None
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            self.data = runtime.to_device(data)

    def arrived(self) -> Data:
        """The tensors on the device, for the work that is started from now on."""
        if self.stream is None:
            return self.data
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self.stream)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(here)  # or the side stream may reuse its memory too early
            return tensor

        return map_tensors(used, self.data)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the host, detached; those that are on a device come in one transfer, whatever their types.

    On MPS, which lacks types and where a transfer costs little, it is one for each type.
    """
    found = [tensor.detach() for tensor in tensors]
    by_kind: dict[object, list[int]] = {}
    for number, tensor in enumerate(found):
        if tensor.device.type != "cpu":
            by_kind.setdefault(tensor.dtype if tensor.device.type == "mps" else tensor.device, []).append(number)
    for numbers in by_kind.values():
        group = [found[number] for number in numbers]
        for number, copy in zip(numbers, unpacked(packed(group).cpu(), group), strict=True):
            found[number] = copy
    return found


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one flat tensor: of their type if they share one, else of their bytes."""
    flat = [tensors[number].reshape(-1).contiguous() for number in _widest_first(tensors)]  # bytes lie side by side
    if _is_mixed(tensors):  # a single value may still say that it has a stride, which bytes may not
        flat = [each.unsqueeze(-1).view(torch.uint8).flatten() for each in flat]
    return torch.cat(flat)


def unpacked(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What `packed` made one tensor of, as views of it."""
    order, is_mixed, found = _widest_first(like), _is_mixed(like), list(like)
    sizes = [like[number].numel() * (like[number].element_size() if is_mixed else 1) for number in order]
    for number, part in zip(order, flat.split(sizes), strict=True):
        found[number] = part.view(like[number].dtype).view(like[number].shape)
    return found


def _is_mixed(tensors: Sequence[Tensor]) -> bool:
    return len({tensor.dtype for tensor in tensors}) > 1


def _widest_first(tensors: Sequence[Tensor]) -> list[int]:
    """In this order each tensor's bytes begin at a multiple of the size of its type."""
    return sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
