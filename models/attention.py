"""One attention call over (q, k, v, mask); the mask is built once a batch and shared by every network call.

B batch, L positions, N heads, H head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionMask:
    """Who may look at whom: everybody, everybody before, or what an additive table says."""

    is_causal: bool = False
    bias: Tensor | None = None  # (B, 1, L, L), 0 where a query may look and -inf where it may not


FULL = AttentionMask()
CAUSAL = AttentionMask(is_causal=True)


def build_mask(
    *, causal: bool, documents: Tensor | None, is_prompt: Tensor | None, dtype: torch.dtype, prefix_len: int = 0
) -> AttentionMask:
    """The mask of a batch.

    `documents` (B, S) numbers the documents that share a row (padding is -1); they never see each other.
    `is_prompt` (B, S) marks prompt tokens, which see each other both ways while answers stay causal.
    `prefix_len` positions stand before the tokens and belong to every document.
    """
    if documents is None and is_prompt is None:
        return CAUSAL if causal else FULL
    marks = documents if documents is not None else is_prompt
    assert marks is not None
    batch, length = marks.shape
    order = torch.arange(length, device=marks.device)
    allowed = (order[None, :] <= order[:, None]).expand(batch, -1, -1) if causal else marks.new_ones(()).bool()
    if is_prompt is not None:
        allowed = allowed | (is_prompt[:, None, :] & is_prompt[:, :, None])
    if documents is not None:
        allowed = allowed & (documents[:, None, :] == documents[:, :, None])
    allowed = allowed.expand(batch, length, length)
    if prefix_len:
        allowed = F.pad(allowed, (prefix_len, 0, prefix_len, 0), value=True)
        if causal:  # the prefix itself sees no token
            ahead = torch.ones(prefix_len, prefix_len + length, dtype=torch.bool, device=marks.device).triu(1)
            allowed[:, :prefix_len] &= ~ahead
    return AttentionMask(bias=bias_of(allowed, dtype))


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive table (B, 1, L, T) of who may look at whom (B, L, T).

    Its rows begin at multiples of 8 numbers in memory: of any others CUDA's kernels make a copy in every call.
    """
    rows, length, seen = allowed.shape
    room = torch.zeros(rows, length, seen + -seen % 8, dtype=dtype, device=allowed.device)[..., :seen]
    return room.masked_fill_(~allowed, float("-inf"))[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Scaled dot-product attention; (B, L, N, H) in and out."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if q.shape[1] == 1:  # one query makes thin products, of which the bfloat16 units take several times longer
            once = _attend_by_sums if torch.compiler.is_compiling() else _attend_at_once
            return once(q.float(), k.float(), v.float(), mask).to(q.dtype)
        return _attend_by_products(q, k, v, mask)
    return _attend_at_once(q, k, v, mask)


def _attend_at_once(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask.bias is None else mask.bias.to(q.dtype),
        is_causal=mask.is_causal,
    )
    return out.transpose(1, 2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """The same by plain matrix products: on CPUs with bfloat16 units, forward and backward take a third of the time."""
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))  # (B, N, L, H)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if mask.is_causal:
        length = scores.shape[-1]
        scores.masked_fill_(torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    elif mask.bias is not None:
        scores.add_(mask.bias)
    return torch.matmul(scores.softmax(-1), v).transpose(1, 2)


def _attend_by_sums(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """The same for one query: compiled, keys and values become float32 as they are read, without a copy of them."""
    scores = (q * k).sum(-1) * q.shape[-1] ** -0.5  # (B, T, N)
    if mask.bias is not None:
        scores = scores + mask.bias[:, 0, 0, :, None]
    return (scores.softmax(1)[..., None] * v).sum(1, keepdim=True)
