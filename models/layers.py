"""The layers of every architecture: casted linear and embedding, rotary positions, attention, SwiGLU, block.

B batch, L positions, D hidden, N heads, H head size. Parameters are float32; a layer works in the dtype of its input.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import AttentionMask, attend
from models.kernels import gated_norm, rms_norm, rotate, swiglu_gate
from models.rotary import Rope

Norm = Literal["post", "pre"]
FeedForward = Literal["swiglu", "gated_norm"]


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


ALIGNED_DEVICES = ("cuda",)  # whose fast products want sizes that are multiples of this many
ALIGNMENT = 8


class _Product(torch.autograd.Function):
    """x times the working copy of a weight, whose gradient is that of the weight itself, in float32: the gradients of
    many calls are then added in float32, though the weight is cast once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, working: Tensor) -> Tensor:
        ctx.save_for_backward(x, working)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return F.linear(x, working)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, working = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_weight = None
        if wants_weight:
            along = grads[0].flatten(0, -2).T @ x.flatten(0, -2)
            grad_weight = along[: ctx.shape[0], : ctx.shape[1]].to(ctx.dtype)
        return grads[0] @ working if wants_x else None, grad_weight, None


class CastedLinear(nn.Module):
    """A linear layer that casts its float32 weight to the dtype of what it multiplies."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal(out_features, in_features, std=1 / math.sqrt(in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.working_weight: Tensor | None = None  # the cast one, while `weights_cast_once` is active
        self.packed_weight: Tensor | None = None  # in the order that a CPU reads fastest; see `pack_for_reading`

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.packed_weight is not None and not torch.compiler.is_compiling():
            return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, bias, "none", [], "")
        if self.working_weight is None:
            return F.linear(x, self.weight.to(x.dtype), bias)
        out_features, in_features = self.weight.shape
        if self.working_weight.shape[1] > in_features:
            x = F.pad(x, (0, self.working_weight.shape[1] - in_features))
        product: Tensor = (
            _Product.apply(x, self.weight, self.working_weight)
            if torch.is_grad_enabled()
            else F.linear(x, self.working_weight)
        )
        return product if product.shape[-1] == out_features else product[..., :out_features]

    def cast_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in this dtype, without gradient; with zeros around it where products want other sizes."""
        cast = self.weight.detach().to(dtype)
        if cast.device.type not in ALIGNED_DEVICES or not any(size % ALIGNMENT for size in cast.shape):
            return cast
        return F.pad(cast, (0, -cast.shape[1] % ALIGNMENT, 0, -cast.shape[0] % ALIGNMENT))

    def pack_for_reading(self, dtype: torch.dtype) -> None:
        """Convert the weight to this dtype, after which it cannot be trained: half the memory, and no cast per token.

        On a CPU with bfloat16 a copy in blocks beside it halves the time of products with few positions.
        """
        self.weight.data = self.weight.data.to(dtype)
        if (
            dtype == torch.bfloat16
            and self.weight.device.type == "cpu"
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        ):
            self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.data, 1)


@contextmanager
def weights_cast_once(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Share one cast of every weight among all network calls made inside; the default TRM makes 21 of them.

    Within another such block it does nothing.
    """
    layers = [] if dtype == torch.float32 else [m for m in module.modules() if isinstance(m, CastedLinear)]
    layers = [layer for layer in layers if layer.working_weight is None and layer.bias is None]
    try:
        for layer in layers:
            layer.working_weight = layer.cast_weight(dtype)
        yield
    finally:
        for layer in layers:
            layer.working_weight = None


class CastedEmbedding(nn.Module):
    """A float32 table whose rows are cast after they are looked up."""

    def __init__(self, num_embeddings: int, dim: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_weight = nn.Parameter(trunc_normal(num_embeddings, dim, std=std))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding_weight).to(self.dtype)


class AttentionMemory(Protocol):
    """Keeps the keys and values of earlier positions; see `models.kv_cache`."""

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of the new positions, (B, L, N, H), and returns all there are, (B, T, N, H)."""
        ...


class AttentionContext(NamedTuple):
    """What every attention call of a supervision step shares."""

    rope: Rope | None
    mask: AttentionMask
    memory: AttentionMemory | None = None


class Attention(nn.Module):
    """Multi-head self-attention; one projection yields all queries, then all keys, then all values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        inner = self.head_dim * num_heads
        self.qkv_proj = CastedLinear(hidden_size, 3 * inner)
        self.o_proj = CastedLinear(inner, hidden_size)

    @property
    def fused_matrices(self) -> tuple[nn.Parameter, list[int]]:
        """The weight that is several matrices one above the other, and the rows of each."""
        return self.qkv_proj.weight, [self.num_heads * self.head_dim] * 3

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:  # (B, L, D)
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3 * self.num_heads, self.head_dim)  # (B, L, 3N, H)
        qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
        if context.rope is not None:
            qk = rotate(qk, context.rope.cos, context.rope.sin)
        q, k = qk.chunk(2, dim=2)
        if context.memory is not None:
            k, v = context.memory.extended(k, v)
        return self.o_proj(attend(q, k, v, context.mask).flatten(2))  # (B, L, D)


def swiglu_width(hidden_size: int, expansion: float) -> int:
    """Two thirds of the expanded width, so that three matrices cost what two would, rounded up to 256."""
    return -(-round(expansion * hidden_size * 2 / 3) // 256) * 256


class BoardConv(nn.Module):
    """Adds to every cell of a square board what a depthwise convolution finds around it.

    The cells are the last of the positions; what stands before them stays as it is.
    """

    def __init__(self, channels: int, kernel: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.kernel = nn.Parameter(trunc_normal(channels, 1, kernel, kernel, std=1 / kernel))

    def forward(self, x: Tensor) -> Tensor:  # (B, L, C)
        cells = x[:, -(self.side**2) :]
        board = cells.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)  # (B, C, side, side), channels last
        kernel = self.kernel.to(x.dtype)
        found = F.conv2d(board, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
        return x + F.pad(found.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, x.shape[1] - self.side**2, 0))


class SwiGLU(nn.Module):
    """The gated feed-forward layer."""

    def __init__(
        self,
        hidden_size: int,
        expansion: float,
        form: FeedForward = "swiglu",
        around: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.gate = gated_norm if form == "gated_norm" else swiglu_gate
        inner = swiglu_width(hidden_size, expansion)
        self.gate_up_proj = CastedLinear(hidden_size, 2 * inner)
        self.around = nn.Identity() if around is None else around(inner)
        self.down_proj = CastedLinear(inner, hidden_size)

    @property
    def fused_matrices(self) -> tuple[nn.Parameter, list[int]]:
        """As that of `Attention`."""
        return self.gate_up_proj.weight, [len(self.gate_up_proj.weight) // 2] * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.around(self.gate(self.gate_up_proj(x))))


class Block(nn.Module):
    """Mixing over positions (attention, or an MLP over the sequence axis), then over channels.

    `post`: the sum of state and update is normalised, as in the reference. `pre`: the update's input is.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expansion: float,
        *,
        norm: Norm = "post",
        mix_len: int | None = None,
        feed_forward: FeedForward = "swiglu",
        around: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        if mix_len is None:
            self.self_attn = Attention(hidden_size, num_heads)
        else:
            self.mlp_t = SwiGLU(mix_len, expansion, feed_forward)
        self.mixes_by_mlp = mix_len is not None
        self.mlp = SwiGLU(hidden_size, expansion, feed_forward, around)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:  # (B, L, D)
        if self.mixes_by_mlp:
            x = self._mixed_by_mlp(x)
        elif self.norm == "post":
            x = rms_norm(x + self.self_attn(x, context))
        else:
            x = x + self.self_attn(rms_norm(x), context)
        if self.norm == "post":
            return rms_norm(x + self.mlp(x))
        return x + self.mlp(rms_norm(x))

    def _mixed_by_mlp(self, x: Tensor) -> Tensor:
        # The norm runs over the SEQUENCE axis here, as in the reference.
        x = x.transpose(1, 2).contiguous()  # (B, D, L)
        x = rms_norm(x + self.mlp_t(x)) if self.norm == "post" else x + self.mlp_t(rms_norm(x))
        return x.transpose(1, 2)


class Level(nn.Module):
    """A stack of blocks: the one network that a recursion applies again and again."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        # Pre-norm blocks bound nothing: without a norm of its own a state grows with every call of the recursion.
        self.ends_in_norm = any(block.norm == "pre" for block in blocks)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        for layer in self.layers:
            x = layer(x, context)
        return rms_norm(x) if self.ends_in_norm else x
