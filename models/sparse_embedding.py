"""The puzzle table: far more rows than a batch touches, so only the rows of the batch carry a gradient.

The table is a buffer. A training forward hands out a leaf copy of the wanted rows; the sign-SGD step
(`engine.train.update_rules.SparseSignSGD`) collects the gradients of these copies and moves just those rows.
"""

import torch
from torch import Tensor, nn

from models.layers import trunc_normal


class CastedSparseEmbedding(nn.Module):
    """A float32 table of puzzle embeddings, trained by its own optimizer."""

    weights: Tensor

    def __init__(self, num_embeddings: int, dim: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weights", trunc_normal(num_embeddings, dim, std=std))
        self.lent: list[tuple[Tensor, Tensor]] = []  # (ids, rows) of the forwards since the last optimizer step

    @property
    def local_weights(self) -> Tensor:
        """The rows of the latest training forward."""
        return self.lent[-1][1]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weights[ids.long()]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self.lent.append((ids.long(), rows))
        return rows.to(self.dtype)
