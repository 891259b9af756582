"""Retention: a memory per head that fades by a fixed factor and takes in each position.

B rows, L positions, N heads, K size of a query or key, E of a value, G chunks of C positions.

    state_n = gamma state_(n-1) + k_n^T v_n     (K, E), empty where a document begins
    y_n     = q_n state_n                       (E,)

There is no normaliser: whatever scales the y of a position is cancelled by the norm of each head that follows.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SIZE = 128


def log_decays(num_heads: int) -> Tensor:
    """log gamma of each head, (N,): gamma is 1 - 1/32 in the first, and every next one forgets half as fast."""
    return torch.tensor([math.log1p(-(2.0 ** -(5 + head))) for head in range(num_heads)], dtype=torch.float32)


def one_position(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, N, K), v (B, N, E), state (B, N, K, E) float32 -> y (B, N, E), the new state."""
    state = log_decay.exp()[:, None, None] * state + k.float().unsqueeze(-1) * v.float().unsqueeze(-2)
    y = q.float().unsqueeze(-2) @ state
    return y.squeeze(-2).to(v.dtype), state


def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    documents: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """q, k (B, L, N, K), v (B, L, N, E) in, (B, L, N, E) out: parallel within chunks and again over chunks, whose states
    carry what was before."""
    return Decays.of(log_decay, q.shape[1], documents, chunk_size=chunk_size, dtype=q.dtype).retain(q, k, v)


@dataclass(frozen=True)
class Decays:
    """How much of one place is left at another, 0 across the borders of documents; built once for all layers.

    B, and G but for `over_chunks`, are 1 where every row is one document.
    """

    inside: Tensor  # (B, N, G, C, C) from a position to a later one of its chunk
    to_end: Tensor  # (B, N, G, C, 1) from a position to the end of its chunk
    over_chunks: Tensor  # (B, N, G, G) float32, from the end of a chunk to the start of a later one
    from_start: Tensor  # (B, N, G, C, 1) from before a chunk to a position of it

    @classmethod
    def of(
        cls, log_decay: Tensor, length: int, documents: Tensor | None, *, chunk_size: int, dtype: torch.dtype
    ) -> "Decays":
        size = min(chunk_size, length)
        count = -(-length // size)
        rate = log_decay[None, :, None, None, None]
        place = torch.arange(size, device=log_decay.device)
        chunk = torch.arange(count, device=log_decay.device)
        # Distances are cut at zero before exp, which would overflow for those that look ahead.
        back, chunks_back = place[:, None] - place, chunk[:, None] - chunk - 1
        inside = torch.exp(rate * back.clamp_min(0)) * (back >= 0)
        to_end = torch.exp(rate * (size - 1 - place)[:, None])
        over_chunks = torch.exp(rate[..., 0] * size * chunks_back.clamp_min(0)) * (chunks_back >= 0)
        from_start = torch.exp(rate * (place + 1)[:, None])
        if documents is not None:
            segments = _padded_to(_segments(documents), count * size).unflatten(1, (count, size))[:, None]
            last = segments[..., -1]  # (B, 1, G)
            before = last.roll(1, dims=-1)  # of the first chunk nothing asks: no state stands before it
            inside = inside * (segments[..., :, None] == segments[..., None, :])
            to_end = to_end * (segments == last[..., None])[..., None]
            over_chunks = over_chunks * (before[..., :, None] == last[..., None, :])
            from_start = from_start * (segments == before[..., None])[..., None]
        return cls(
            inside=inside.to(dtype), to_end=to_end.to(dtype), over_chunks=over_chunks, from_start=from_start.to(dtype)
        )

    def retain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, count, size = q.shape[1], self.over_chunks.shape[-1], self.inside.shape[-1]
        q, k, v = (_padded_to(x, count * size).unflatten(1, (count, size)) for x in (q, k, v))
        q, k, v = (x.permute(0, 3, 1, 2, 4) for x in (q, k, v))  # (B, N, G, C, K or E)
        y = (q @ k.transpose(-1, -2) * self.inside) @ v
        if count > 1:
            added = (k * self.to_end).transpose(-1, -2) @ v  # (B, N, G, K, E) what each chunk adds to the state
            states = (self.over_chunks @ added.flatten(-2).float()).view_as(added)  # the state before each chunk
            y = y + (q * self.from_start) @ states.to(q.dtype)
        return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class Kernels:
    """The chunkwise form by the kernels of flash-linear-attention, whose heads fade as ours do."""

    borders: Tensor | None  # (documents + 1,) where each begins when all rows stand one behind another, and the end

    @classmethod
    def of(cls, documents: Tensor | None) -> "Kernels":
        if documents is None:
            return cls(None)
        begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True).flatten()
        borders = F.pad(begins.nonzero().squeeze(-1), (0, 1), value=documents.numel())
        torch._dynamo.maybe_mark_dynamic(borders, 0)  # or each number of documents would be another graph
        return cls(borders)

    def retain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from fla.ops.retention import chunk_retention

        if self.borders is None:
            y: Tensor = chunk_retention(q, k, v, scale=1.0)[0]
            return y
        rows = q.shape[:2]
        q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
        y = chunk_retention(q, k, v, scale=1.0, cu_seqlens=self.borders)[0]
        return y.squeeze(0).unflatten(0, rows)


def has_kernels(device: torch.device, dtype: torch.dtype, key_size: int) -> bool:
    """Whether the kernels are here and made for this: they run on CUDA and multiply in 16 bits, 16 by 16 at least."""
    fits = device.type == "cuda" and dtype != torch.float32 and 16 <= key_size <= 256
    return fits and find_spec("fla") is not None


def read_on(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    lengths: Tensor,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """Continue from a state: the outputs (B, L, N, E), and each row's state after the first `lengths` (B,) of them.

    Every length is from 1 to L.
    """
    if q.shape[1] == 1:
        y, state = one_position(q[:, 0], k[:, 0], v[:, 0], log_decay, state)
        return y.unsqueeze(1), state
    place = torch.arange(q.shape[1], device=q.device)
    y = chunkwise(q, k, v, log_decay, chunk_size=chunk_size)
    from_state = torch.exp(log_decay * (place + 1)[:, None])[..., None]  # (L, N, 1)
    y = y + ((q.float() * from_state).transpose(1, 2) @ state).transpose(1, 2).to(y.dtype)
    to_end = lengths[:, None] - 1 - place  # (B, L), negative behind the end of a row
    left = torch.exp(log_decay * to_end.clamp_min(0)[..., None]) * (to_end >= 0)[..., None]  # (B, L, N)
    added = (k.float() * left[..., None]).permute(0, 2, 3, 1) @ v.float().transpose(1, 2)
    return y, torch.exp(log_decay * lengths[:, None])[..., None, None] * state + added


def _segments(documents: Tensor) -> Tensor:
    """Numbers, in every row (B, L), the runs of positions of one document."""
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return begins.cumsum(1)


def _padded_to(x: Tensor, length: int) -> Tensor:
    """x (B, L, ...) with zeros behind it."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))
