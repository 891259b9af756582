"""AdamATan2 in plain torch, sign-SGD for the puzzle table, and the set of optimizers of a run."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.runtime.devices import Runtime
from engine.tasks.protocol import Sums
from engine.train.schedule import CosineSchedule, RestartSchedule
from models.sparse_embedding import CastedSparseEmbedding

LARGEST_STEP = 2**53


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
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = betas

        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)

        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, [math.sqrt(1 - beta2 ** s["step"]) for s in states])
        updates = [torch.atan2(m, d) for m, d in zip(first, scale, strict=True)]
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
        unique, place = ids.unique(return_inverse=True)
        summed = torch.zeros(len(unique), gradients.shape[1], dtype=gradients.dtype, device=gradients.device)
        summed.index_add_(0, place, gradients)
        lr = self.param_groups[0]["lr"]
        self.table.weights[unique] = self.table.weights[unique] * (1 - lr * self.weight_decay) - lr * summed.sign()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.table.lent.clear()

    def state_dict(self) -> dict[str, Any]:
        return {}  # sign-SGD remembers nothing

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class OptimizerSet:
    """The optimizers of a run in the order in which they step: the puzzle table first, then the network."""

    def __init__(
        self,
        network: Optimizer | None,
        network_lr: float,
        sparse: SparseSignSGD | None,
        sparse_lr: float,
        schedule: CosineSchedule | RestartSchedule,
    ) -> None:
        self.members: list[tuple[Any, float]] = []
        if sparse is not None:
            self.members.append((sparse, sparse_lr))
        if network is not None:
            self.members.append((network, network_lr))
        self.network, self.sparse, self.schedule = network, sparse, schedule

    def dense_gradients(self) -> list[Tensor]:
        """Gradients of the network; every rank has the same ones in the same order."""
        groups = self.network.param_groups if self.network else []
        return [p.grad for group in groups for p in group["params"] if p.grad is not None]

    def sparse_gradients(self) -> list[Tensor]:
        """Gradients of this rank's puzzle rows."""
        lent = self.sparse.table.lent if self.sparse else []
        return [rows.grad for _, rows in lent if rows.grad is not None]

    def gradient_norm(self, dense: list[Tensor], sums: Sums, runtime: Runtime) -> tuple[float, bool]:
        """Norm of the summed gradients of the network, and whether they and every rank's puzzle rows and losses are
        finite; the step's only wait."""
        squares = torch.zeros(3, device=runtime.device)
        for slot, gradients in enumerate((dense, self.sparse_gradients())):
            if gradients:
                squares[slot] = torch.stack(torch._foreach_norm(gradients)).square().sum()
        for name, value in sums.items():
            if name.endswith("loss"):
                squares[2] += value
        runtime.all_reduce_sum_([squares[1:]])  # what differs between the ranks; the gradients are summed already
        dense_square, *others = squares.tolist()
        return math.sqrt(dense_square) if dense_square >= 0 else math.nan, math.isfinite(dense_square + sum(others))

    def step(self, step: float) -> float:
        """Set the learning rates of this optimizer step and make it; returns the rate of the last optimizer."""
        lr = 0.0
        for optimizer, base in self.members:
            lr = self.schedule.at(step, base)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        return lr

    def zero_grad(self) -> None:
        for optimizer, _ in self.members:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take over what the optimizers remembered; their options stay those of this run, unless the saved parameter
        groups are others."""
        if len(states) != len(self.members):
            raise ValueError(
                f"The checkpoint holds {len(states)} optimizers, this run has {len(self.members)}. "
                "Resume with the same freeze_weights and arch.puzzle_emb_ndim."
            )
        for (optimizer, _), state in zip(self.members, states, strict=True):
            former = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            check_moments(optimizer)
            if sizes_of(former) == sizes_of(optimizer.param_groups):
                for group, own in zip(optimizer.param_groups, former, strict=True):
                    group.update({key: value for key, value in own.items() if key != "params"})


def check_moments(optimizer: Any) -> None:
    """Refuse what an optimizer cannot have remembered of a weight: another shape, or a part of it only."""
    for parameter, found in getattr(optimizer, "state", {}).items():
        is_muon = "momentum" in found
        moments = {key: found.get(key) for key in (("momentum",) if is_muon else ("exp_avg", "exp_avg_sq"))}
        fits = all(isinstance(value, Tensor) and value.shape == parameter.shape for value in moments.values())
        step = found.get("step")
        is_step = isinstance(step, Tensor) and step.ndim == 0 or type(step) in (int, float)
        if found and not (fits and (is_muon or is_step and 0 <= float(step) < LARGEST_STEP)):
            shapes = {key: tuple(value.shape) if isinstance(value, Tensor) else value for key, value in moments.items()}
            raise ValueError(
                f"The optimizer remembers {shapes} and step {step} of a weight of shape {tuple(parameter.shape)}. Use "
                "another checkpoint."
            )


def sizes_of(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group.get("params", ())) for group in groups]


Group = dict[str, Any]
DECAYED_VECTOR = "q_head.bias"


EMBEDDING = "embedding_weight"


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decays_embeddings: bool = True
) -> list[Group]:
    """Parameter groups: weights of two or more dimensions decay, norm gains and biases do not, embeddings as asked.

    The bias of the halting head is the exception: it decays, as in the reference.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        decays = parameter.ndim > 1 and (decays_embeddings or not name.endswith(EMBEDDING))
        (decayed if decays or name.endswith(DECAYED_VECTOR) else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def network_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    decays_embeddings: bool = True,
) -> Optimizer:
    """`adam_atan2` (plain torch, any device), `adam_atan2_cuda` (the compiled package) or `adamw`, for all of `module`
    that is trained."""
    groups = decay_groups(trained_parameters(module).items(), weight_decay, decays_embeddings)
    optimizer: Optimizer
    if name == "adam_atan2":
        optimizer = AdamATan2(groups, lr=lr, betas=betas)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas)
    elif name == "adam_atan2_cuda":
        optimizer = _compiled_adam_atan2(groups, lr, betas)
    else:
        raise ValueError(f"Unknown optimizer {name!r}; known are: adam_atan2, adam_atan2_cuda, adamw.")
    resume_with_saved_groups(optimizer, module)
    return optimizer


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def resume_with_saved_groups(optimizer: Optimizer, module: nn.Module) -> None:
    """Let a run that was saved with other parameter groups resume with those, so that it ends as it began.

    Such a checkpoint has all parameters of the module in one group, or matrices and vectors apart, or embeddings with the
    other ones.
    """

    def adopt(optimizer: Optimizer, state: dict[str, Any]) -> None:
        sizes = sizes_of(state["param_groups"])
        own = [group["params"] for group in optimizer.param_groups]
        if sizes == sizes_of(optimizer.param_groups):
            return
        named = trained_parameters(module).items()
        with_and_without = [[group["params"] for group in decay_groups(named, 0.0, decays)] for decays in (True, False)]
        saved = [groups for groups in with_and_without if [len(group) for group in groups] == sizes]
        if len(sizes) == 1:
            order = list(module.parameters())
        elif len(own) == 1:
            order = sorted(own[0], key=lambda p: p.ndim == 1)
        else:
            order = [p for group in (saved or [own])[0] for p in group]
        if sum(sizes) == len(order):  # else torch's own error says what does not fit
            defaults, rest = optimizer.defaults, iter(order)
            optimizer.param_groups = [{**defaults, "params": list(islice(rest, size))} for size in sizes]

    optimizer.register_load_state_dict_pre_hook(adopt)


def _compiled_adam_atan2(groups: list[Group], lr: float, betas: tuple[float, float]) -> Optimizer:
    if not all(p.is_cuda for group in groups for p in group["params"]):
        raise ValueError("optimizer=adam_atan2_cuda needs a CUDA device. Use optimizer=adam_atan2, which equals it.")
    try:
        from adam_atan2 import AdamATan2 as CompiledAdamATan2
    except ImportError as error:
        raise ValueError(
            f"optimizer=adam_atan2_cuda needs the package adam-atan2, which cannot be imported ({error}). "
            "Install it with `pip install -e .[cuda]`, or use optimizer=adam_atan2, which equals it."
        ) from error
    compiled: Optimizer = CompiledAdamATan2(groups, lr=lr, betas=betas)
    return compiled
