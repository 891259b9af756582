"""Initial values that every layer draws from."""

import math

import torch
from torch import Tensor


def trunc_normal(*shape: int, std: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values cut at two sigma whose standard deviation, after the cut, is exactly `std`.

    Cutting shrinks the spread to 0.8796 sigma, so the parent law is widened by that factor first.
    """
    if std == 0:
        return torch.zeros(shape, dtype=dtype)
    bound = 2.0
    density = math.exp(-0.5 * bound**2) / math.sqrt(2 * math.pi)
    mass = math.erf(bound / math.sqrt(2))
    kept_std = math.sqrt(1 - 2 * bound * density / mass)
    parent_std = std / kept_std

    tail = math.erf(bound / math.sqrt(2))
    values = torch.empty(shape, dtype=torch.float32).uniform_(-tail, tail).erfinv_()
    values.mul_(math.sqrt(2) * parent_std).clamp_(-bound * parent_std, bound * parent_std)
    return values.to(dtype)
