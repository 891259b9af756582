"""The optimizers of students and teachers: AdamW, AdamATan2, and Muon for hidden matrices beside AdamW for the rest."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.train.network_optimizer import (
    Group,
    decay_groups,
    network_optimizer,
    resume_with_saved_groups,
    trained_parameters,
)
from models.layers import Attention, SwiGLU
from models.retnet.model import Retention

# The iteration that drives all singular values of a matrix towards 1: five times a polynomial of odd powers, steep at 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS_OF_ADAM = 0.2  # the usual size of what AdamW adds to a weight, in learning rates
EPS = 1e-8
OUTSIDE = ("embed", "lm_head", "q_head", "puzzle_emb", "wte", "wpe")  # parts of names of what stands at either end


class MuonHybrid(Optimizer):
    """One optimizer of two laws; a group says by `is_muon` which is its own, and its rate is `lr * lr_scale`.

    Muon adds the orthogonal matrix next to the averaged gradient, at the size of what AdamW would add, so that both
    take the same learning rate. What is fused of several matrices (`parts`: the rows of each) is treated one by one.
    """

    def __init__(self, groups: Iterable[Group], lr: float, betas: tuple[float, float], momentum: float) -> None:
        defaults = {"lr": lr, "lr_scale": 1.0, "weight_decay": 0.0, "betas": betas, "momentum": momentum}
        super().__init__(groups, defaults | {"is_muon": False, "parts": []})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate = group["lr"] * group["lr_scale"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - rate * group["weight_decay"])
                if group["is_muon"]:
                    self._muon(p, p.grad, rate, group)
                else:
                    self._adam(p, p.grad, rate, group)

    def _muon(self, p: Tensor, grad: Tensor, rate: float, group: Group) -> None:
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1 - momentum)
        ahead = grad.lerp(state["momentum"], momentum)  # where the average is going (Nesterov)
        for weight, update in zip(
            p.split(group["parts"] or len(p)), ahead.split(group["parts"] or len(p)), strict=True
        ):
            size = RMS_OF_ADAM * math.sqrt(max(update.shape))
            weight.add_(orthogonal(update).to(weight.dtype), alpha=-rate * size)

    def _adam(self, p: Tensor, grad: Tensor, rate: float, group: Group) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(EPS)
        p.addcdiv_(state["exp_avg"], size, value=-rate / (1 - beta1 ** state["step"]))


def orthogonal(matrix: Tensor) -> Tensor:
    """About the matrix with orthonormal rows or columns next to this one: its singular values become 0.7 to 1.2."""
    # GPUs multiply in 16 bits several times faster, and the iteration needs no more; CPUs are slower that way.
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def student_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    aux_lr_scale: float = 0.25,
    momentum: float = 0.95,
) -> Optimizer:
    """`adamw`, `adam_atan2`, or `muon_hybrid`: Muon for hidden matrices, AdamW at `aux_lr_scale` of the rate for the rest.

    Which weights decay is decided by `decay_groups`, as for every network.
    """
    if name != "muon_hybrid":
        if name not in ("adamw", "adam_atan2"):
            raise ValueError(f"Unknown optimizer {name!r}; known are: adamw, adam_atan2, muon_hybrid.")
        return network_optimizer(name, module, lr=lr, betas=betas, weight_decay=weight_decay)
    trained = trained_parameters(module)
    hidden = {key: p for key, p in trained.items() if p.ndim == 2 and not any(word in key for word in OUTSIDE)}
    others = [(key, p) for key, p in trained.items() if key not in hidden]
    aux = [group | {"lr_scale": aux_lr_scale} for group in decay_groups(others, weight_decay)]
    muon = MuonHybrid([*_muon_groups(module, list(hidden.values()), weight_decay), *aux], lr, betas, momentum)
    resume_with_saved_groups(muon, module)
    return muon


def _muon_groups(module: nn.Module, hidden: list[nn.Parameter], weight_decay: float) -> list[Group]:
    """One for every way in which matrices are fused."""
    parts = {id(p): rows for p, rows in _fused(module)}
    by_parts: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for p in hidden:
        by_parts.setdefault(tuple(parts.get(id(p), ())), []).append(p)
    return [
        {"params": kept, "parts": list(rows), "is_muon": True, "weight_decay": weight_decay}
        for rows, kept in by_parts.items()
    ]


def _fused(module: nn.Module) -> Iterator[tuple[nn.Parameter, list[int]]]:
    """Weights that are several matrices one above the other, and the rows of each."""
    for layer in module.modules():
        if isinstance(layer, Retention):
            both, *others = layer.widths
            yield layer.qkvg_proj.weight, [both // 2, both // 2, *others]
        elif isinstance(layer, Attention):
            yield layer.qkv_proj.weight, [len(layer.qkv_proj.weight) // 3] * 3
        elif isinstance(layer, SwiGLU):
            yield layer.gate_up_proj.weight, [len(layer.gate_up_proj.weight) // 2] * 2
