"""The three small operations between matrix products, each with a backward pass that reads and writes little memory.

All compute in float32 and return the dtype of their input. B batch, L positions, D hidden, N heads, H head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square along the last axis; no weight."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in their half-split form; x (B, L, N, H), tables (L, H) or (B, L, H)."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def swiglu_gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where the gate is the first half of the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
