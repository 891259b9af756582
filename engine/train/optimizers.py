"""The set of optimizers of a run: its gradients, their norm, the learning rates, and what a checkpoint holds of it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.train.schedule import DecaySchedule, RestartSchedule
from engine.train.update_rules import SparseSignSGD

LARGEST_STEP = 2**53


class OptimizerSet:
    """The optimizers of a run in the order in which they step: the puzzle table first, then the network."""

    def __init__(
        self,
        network: Optimizer | None,
        network_lr: float,
        sparse: SparseSignSGD | None,
        sparse_lr: float,
        schedule: DecaySchedule | RestartSchedule,
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

    def squares(self, dense: list[Tensor], device: torch.device) -> Tensor:
        """Squared norms (2,) of the network's gradients and of those of this rank's puzzle rows, on the device."""
        squares = torch.zeros(2, device=device)
        for slot, gradients in enumerate((dense, self.sparse_gradients())):
            if gradients:
                squares[slot] = torch.stack(torch._foreach_norm(gradients)).square().sum()
        return squares

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
