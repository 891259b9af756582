"""How one optimizer step moves weights: AdamATan2 in plain torch, and sign-SGD for the puzzle table."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.runtime.devices import buckets
from models.sparse_embedding import CastedSparseEmbedding


class AdamATan2(Optimizer):
    """Adam whose division is an arc tangent, so that no epsilon is needed and a step never exceeds lr * pi / 2.

    Decoupled weight decay comes first and uses the plain learning rate. A parameter without gradient is skipped
    whole: no decay, no moments, its own step count stays.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(parameters, **{key: group[key] for key in ("lr", "betas", "weight_decay")})

    def _step_group(self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        for bucket in buckets(parameters):
            self._step_bucket(bucket, lr, betas, weight_decay)

    def _step_bucket(
        self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        """The step of a few parameters, whose updates are all that exists beside the moments."""
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = betas

        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)

        updates = torch._foreach_sqrt(second)
        torch._foreach_div_(updates, [math.sqrt(1 - beta2 ** s["step"]) for s in states])
        for mean, update in zip(first, updates, strict=True):  # torch has no such function for many tensors at once
            torch.atan2(mean, update, out=update)
        torch._foreach_mul_(updates, [-lr / (1 - beta1 ** s["step"]) for s in states])
        torch._foreach_add_(parameters, updates)


class SparseSignSGD:
    """Moves the rows of a puzzle table that the batch used by the sign of their summed gradient.

    `gather` concatenates a tensor over all ranks, so that every rank makes the same step.
    """

    def __init__(
        self,
        table: CastedSparseEmbedding,
        lr: float,
        weight_decay: float,
        gather: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> None:
        self.table = table
        self.weight_decay = weight_decay
        self.gather = gather
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        used = [(ids, rows.grad) for ids, rows in self.table.lent if rows.grad is not None]
        self.zero_grad()
        if not used:
            return
        ids = self.gather(torch.cat([ids for ids, _ in used]))
        gradients = self.gather(torch.cat([grad for _, grad in used]))
        # All uses of a row are summed in one place, and all of them write the same new row: how many different ones
        # there are is not asked, as the host would wait for the answer.
        place = torch.searchsorted(ids.sort().values, ids)
        summed = torch.zeros_like(gradients).index_add_(0, place, gradients)[place]
        lr = self.param_groups[0]["lr"]
        self.table.weights[ids] = self.table.weights[ids] * (1 - lr * self.weight_decay) - lr * summed.sign()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.table.lent.clear()

    def state_dict(self) -> dict[str, Any]:
        return {}  # sign-SGD remembers nothing

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state
