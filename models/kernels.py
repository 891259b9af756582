"""The small operations between matrix products, each with a backward pass that keeps and moves little memory.

All compute in float32 and return the dtype of their input. B batch, L positions, D hidden, N heads, H head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out, inverse = _normed(x)
        ctx.save_for_backward(out, inverse)  # out is kept anyway, as the input of what follows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out, inverse = ctx.saved_tensors
        grad = grads[0].to(inverse.dtype)
        wide = out.to(inverse.dtype)
        along = (grad * wide).mean(-1, keepdim=True)
        return torch.addcmul(grad, wide, along, value=-1).mul_(inverse).to(out.dtype)


def _normed(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float() if x.dtype != torch.float64 else x
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide * inverse).to(x.dtype), inverse


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square along the last axis; no weight."""
    if not torch.is_grad_enabled():  # at one position an autograd function costs as much as its work
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    normed: Tensor = _RmsNorm.apply(x)
    return normed


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        pairs = grads[0].float().unflatten(-1, (-1, 2))
        if _has_complex(pairs):
            turned = torch.view_as_complex(pairs) * torch.complex(cos, -sin)
            first, second = turned.real, turned.imag
        else:
            a, b = pairs.unbind(-1)
            first, second = a * cos + b * sin, b * cos - a * sin
        return torch.cat((first, second), dim=-1).to(grads[0].dtype), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    if _has_complex(x):
        turned = torch.view_as_real(torch.complex(first, second).mul_(torch.complex(cos, sin)))
    else:
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _has_complex(x: Tensor) -> bool:
    """Complex products are three times faster on a CPU; compilers and MPS do without."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (B, L, N, H) pairs dimension i with i + H/2; tables (L, H/2) or (B, L, H/2).

    The result has the two of a pair side by side. Queries and keys are reordered alike, so their products are
    those of the usual layout, and a pass over the memory is saved.
    """
    if not torch.is_grad_enabled():
        return _turned(x, cos.unsqueeze(-2), sin.unsqueeze(-2))
    turned: Tensor = _Rotate.apply(x, cos.unsqueeze(-2), sin.unsqueeze(-2))
    return turned


class _SwigluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return torch.cat((grad_gate, F.silu(gate).mul_(grads[0])), dim=-1)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def swiglu_gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where the gate is the first half of the last axis."""
    if not torch.is_grad_enabled():
        return _gated(gate_up)
    gated: Tensor = _SwigluGate.apply(gate_up)
    return gated


def gated_norm(gate_up: Tensor) -> Tensor:
    """sigmoid(gate) * norm(gate * up): however large orthogonal steps make the weights, its size stays."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.sigmoid(gate) * rms_norm(gate * up)
