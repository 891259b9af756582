"""Muon: the matrices of the blocks take orthogonal steps, everything else those of AdamW.

What is fused of several matrices is treated one by one, and what has the same shape at once.
"""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.runtime.devices import buckets

Group = dict[str, Any]

# The iteration that drives all singular values of a matrix towards 1: five times a polynomial of odd powers, steep at 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS_OF_ADAM = 0.2  # the usual size of what AdamW adds to a weight, in learning rates
EPS = 1e-8
OUTSIDE = ("embed", "lm_head", "q_head", "puzzle_emb", "wte", "wpe")  # parts of names of what stands at either end


class MuonOptions(NamedTuple):
    """What Muon takes beside what every optimizer does."""

    momentum: float = 0.95
    aux_lr_scale: float = 0.25  # learning rate of AdamW, as a share of Muon's
    aux_weight_decay: float | None = None  # of AdamW; None: the same as Muon's


class Muon(Optimizer):
    """One optimizer of two laws; a group says by `is_muon` which is its own, and its rate is `lr * lr_scale`.

    Muon adds the orthogonal matrix next to the averaged gradient, at the size of what AdamW would add, so that both
    take the same learning rate. `parts` are the rows of each matrix in a fused one.
    """

    def __init__(self, groups: Iterable[Group], lr: float, betas: tuple[float, float], momentum: float) -> None:
        defaults = {"lr": lr, "lr_scale": 1.0, "weight_decay": 0.0, "betas": betas, "momentum": momentum}
        super().__init__(groups, defaults | {"is_muon": False, "parts": []})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            rate = group["lr"] * group["lr_scale"]
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            if group["is_muon"]:
                self._muon(parameters, rate, group)
            else:
                for p in parameters:
                    self._adam(p, rate, group["betas"])

    def _muon(self, parameters: list[Tensor], rate: float, group: Group) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        averages = [self.state[p]["momentum"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # where they are going (Nesterov)
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for p, update in zip(parameters, ahead, strict=True):
            rows = group["parts"] or len(p)
            for pair in zip(p.split(rows), update.split(rows), strict=True):
                by_shape.setdefault(pair[0].shape, []).append(pair)
        for shape, pairs in by_shape.items():
            weights = iter([weight for weight, _ in pairs])
            for bucket in buckets([update for _, update in pairs]):
                moved = list(islice(weights, len(bucket)))
                steps = orthogonal(torch.stack(bucket)).to(moved[0].dtype)
                torch._foreach_add_(moved, steps.unbind(), alpha=-rate * RMS_OF_ADAM * math.sqrt(max(shape)))

    def _adam(self, p: Tensor, rate: float, betas: tuple[float, float]) -> None:
        state, grad, (beta1, beta2) = self.state[p], p.grad, betas
        assert grad is not None
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(EPS)
        p.addcdiv_(state["exp_avg"], size, value=-rate / (1 - beta1 ** state["step"]))


def orthogonal(matrices: Tensor) -> Tensor:
    """About the matrices with orthonormal rows or columns next to these (N, R, C): singular values become 0.7 to 1.2."""
    # GPUs multiply in 16 bits several times faster, and the iteration needs no more; CPUs are slower that way.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def takes_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether this is a matrix of the blocks."""
    return parameter.ndim == 2 and not any(word in name for word in OUTSIDE)


def muon_groups(module: nn.Module, matrices: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """One for every way in which matrices are fused, which the layers say by `fused_matrices`."""
    fused: Any = [layer.fused_matrices for layer in module.modules() if hasattr(layer, "fused_matrices")]
    parts: dict[int, list[int]] = {id(p): rows for p, rows in fused}
    by_parts: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for p in matrices:
        by_parts.setdefault(tuple(parts.get(id(p), ())), []).append(p)
    return [
        {"params": kept, "parts": list(rows), "is_muon": True, "weight_decay": weight_decay}
        for rows, kept in by_parts.items()
    ]
