"""Rotary positions: along a sequence, or by the rows and columns of a board."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rope(NamedTuple):
    """Cosines and sines of rotary positions, (L, H/2) or, where rows differ in their positions, (B, L, H/2)."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding(nn.Module):
    """Tables of rotary positions, computed once in float32.

    With `side` the last side x side positions are the cells of a board: their rows turn one half of the dimensions,
    their columns the other. Both count from 1; what stands before the board is at 0, 0.
    """

    cos_table: Tensor
    sin_table: Tensor

    def __init__(self, head_dim: int, max_positions: int, base: float = 10000.0, side: int | None = None) -> None:
        super().__init__()
        places = torch.arange(max_positions).unsqueeze(1) if side is None else places_on_board(side, max_positions)
        share = head_dim // places.shape[1]
        frequencies = 1.0 / base ** (torch.arange(0, share, 2, dtype=torch.float32) / share)
        angles = (places.float().unsqueeze(2) * frequencies).flatten(1)
        self.register_buffer("cos_table", angles.cos(), persistent=False)
        self.register_buffer("sin_table", angles.sin(), persistent=False)

    def forward(self, positions: Tensor | None, length: int) -> Rope:
        if positions is None:
            return Rope(self.cos_table[:length], self.sin_table[:length])
        return Rope(self.cos_table[positions], self.sin_table[positions])


def places_on_board(side: int, length: int) -> Tensor:
    """Row and column of each of `length` positions, (L, 2)."""
    cells = torch.arange(side * side)
    return F.pad(torch.stack((cells // side, cells % side), dim=1) + 1, (0, 0, length - len(cells), 0))
