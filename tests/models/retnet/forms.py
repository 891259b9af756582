"""Retention written in its two plain forms: all pairs of positions at once, and one position after another."""

import torch
from torch import Tensor

from models.retnet.retention import Decays, one_position


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, documents: Tensor | None = None) -> Tensor:
    """All pairs of positions at once; q, k (B, L, N, K), v (B, L, N, E) in, (B, L, N, E) out."""
    decays = Decays.of(log_decay, q.shape[1], documents, chunk_size=q.shape[1], dtype=q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, L, K or E)
    scores = q @ k.transpose(-1, -2) * decays.inside[:, :, 0]
    return (scores @ v).transpose(1, 2)


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, documents: Tensor | None = None) -> Tensor:
    """One position after another."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    outputs = []
    for n in range(q.shape[1]):
        if documents is not None and n:
            goes_on = documents[:, n] == documents[:, n - 1]
            state = torch.where(goes_on[:, None, None, None], state, 0)
        y, state = one_position(q[:, n], k[:, n], v[:, n], log_decay, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)
