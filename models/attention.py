"""One attention call over (q, k, v, mask); the mask is built once a batch and shared by every network call.

B batch, L positions, N heads, H head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionMask:
    """Who may look at whom: everybody, everybody before, what an additive table says, or what a mask of blocks says."""

    is_causal: bool = False
    bias: Tensor | None = None  # (B, 1, L, L), 0 where a query may look and -inf where it may not
    blocks: Any = None  # a BlockMask: compiled code skips the blocks of the table in which nobody may look


FULL = AttentionMask()
CAUSAL = AttentionMask(is_causal=True)
MayLook = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query, key) -> whether


def build_mask(
    *,
    causal: bool,
    documents: Tensor | None,
    is_prompt: Tensor | None,
    dtype: torch.dtype,
    prefix_len: int = 0,
    in_blocks: bool = False,
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
    rows, length = marks.shape[0], prefix_len + marks.shape[1]
    may_look = rule_of(causal, documents, is_prompt, prefix_len)
    if in_blocks:
        from torch.nn.attention.flex_attention import create_block_mask  # takes half a second

        return AttentionMask(blocks=create_block_mask(may_look, rows, None, length, length, device=marks.device))
    row = torch.arange(rows, device=marks.device)[:, None, None]
    order = torch.arange(length, device=marks.device)
    return AttentionMask(bias=bias_of(may_look(row, row, order[:, None], order).expand(rows, length, length), dtype))


def rule_of(causal: bool, documents: Tensor | None, is_prompt: Tensor | None, prefix_len: int) -> MayLook:
    """The mask of `build_mask` for a query and a key of a row, each a number or many."""

    def may_look(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        order = key <= query if causal else key == key
        asks, said = ((place - prefix_len).clamp_min(0) for place in (query, key))
        allowed = order
        if is_prompt is not None:
            allowed = allowed | (is_prompt[row, asks] & is_prompt[row, said])
        if documents is not None:
            allowed = allowed & (documents[row, asks] == documents[row, said])
        # The prefix is seen by all, and in a causal model sees no token itself.
        return torch.where((query < prefix_len) | (key < prefix_len), order, allowed) if prefix_len else allowed

    return may_look


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive table (B, 1, L, T) of who may look at whom (B, L, T).

    Its rows begin at multiples of 8 numbers in memory: of any others CUDA's kernels make a copy in every call.
    """
    rows, length, seen = allowed.shape
    room = torch.zeros(rows, length, seen + -seen % 8, dtype=dtype, device=allowed.device)[..., :seen]
    return room.masked_fill_(~allowed, float("-inf"))[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Scaled dot-product attention; (B, L, N, H) in and out."""
    if mask.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        return flex_attention(q, k, v, block_mask=mask.blocks).transpose(1, 2)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if q.shape[1] > 1:
            return _attend_by_products(q, k, v, mask)
        # One query makes thin products, of which the bfloat16 units take several times longer.
        if torch.compiler.is_compiling():
            one_query = _attend_by_sums
        else:  # plain products are faster for several rows, and for one row more calls than they save
            one_query = _attend_by_products if len(q) > 1 else _attend_at_once
        return one_query(q.float(), k.float(), v.float(), mask).to(q.dtype)
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
    # Contiguous before it is transposed: the product would else copy the transposed keys, which takes five times longer.
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.contiguous().transpose(-1, -2))
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
