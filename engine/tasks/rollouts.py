"""Tries a puzzle several times, each in a disguise or with noise of its own, and chooses among the answers.

B rows, S tokens, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch
from engine.runtime.devices import to_device
from models.act import ActModel, Carry
from models.config import ArchConfig, Depth
from models.core import Latents
from models.layers import weights_cast_once
from models.losses.puzzles import ACTLossHead

# From a seed: which cell each cell of a board takes its token from, and the new name of each token.
DrawDisguise = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Effort:
    """How hard an evaluation tries."""

    halt_max_steps: int | None = None  # None: as many supervision steps as training takes at most
    rollouts: int = 1
    noise: float = 0.0  # standard deviation; at the start of a row that of the latents is 1
    seed: int = 0
    disguise: DrawDisguise | None = None
    by_step: bool = False  # also what is right after every supervision step
    choose: Literal["surest", "vote"] = "surest"

    def depth_of(self, config: ArchConfig) -> Depth:
        depth = config.depth_at(1.0)
        return depth._replace(max_steps=self.halt_max_steps or depth.max_steps)


ONE_TRY = Effort()


class Surest:
    """Chooses for each row the try with the highest final halting logit, the first one of several."""

    best: dict[str, Tensor]  # what the chosen try of each row gave

    def add(self, number: int, outputs: dict[str, Tensor]) -> None:
        """Let another try count; the first one is number 0."""
        if number > 0:
            outputs = chosen(outputs["q_halt_logits"] > self.best["q_halt_logits"], outputs, self.best)
        self.best = outputs


class Vote:
    """Chooses for each row the answer that most tries give; of several the one with the highest sum of halting
    probabilities, then the one given first. What else is known of it is of the last try that gave it.

    A try adds to one answer alone, its own: either this is now the best, or the best stays. So no try need be kept whole.
    """

    best: dict[str, Tensor]

    def __init__(self) -> None:
        self.answers: list[Tensor] = []  # (B, S) of each try
        self.sureness: list[Tensor] = []  # (B,)
        self.standing: tuple[Tensor, Tensor, Tensor]  # of the best: votes, sum of probabilities, first try; (B,)

    def add(self, number: int, outputs: dict[str, Tensor]) -> None:
        self.answers.append(outputs["logits"].argmax(-1))
        self.sureness.append(outputs["q_halt_logits"].float().sigmoid())
        agrees = torch.stack([(answer == self.answers[-1]).all(-1) for answer in self.answers])  # (tries, B)
        votes, first = agrees.sum(0), agrees.int().argmax(0)
        sureness = (agrees * torch.stack(self.sureness)).sum(0)
        if number == 0:
            self.best, self.standing = outputs, (votes, sureness, first)
            return
        best_votes, best_sureness, best_first = self.standing
        is_earlier = (sureness == best_sureness) & (first < best_first)
        is_better = (votes > best_votes) | (votes == best_votes) & ((sureness > best_sureness) | is_earlier)
        self.best = chosen(is_better, outputs, self.best)
        self.standing = (
            torch.where(is_better, votes, best_votes),
            torch.where(is_better, sureness, best_sureness),
            torch.where(is_better, first, best_first),
        )


CHOICES: dict[str, type[Surest] | type[Vote]] = {"surest": Surest, "vote": Vote}


def chosen(rows: Tensor, one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """`one` in these rows (B,), `other` in all else."""
    return {name: torch.where(rows.view(-1, *[1] * (old.ndim - 1)), one[name], old) for name, old in other.items()}


def best_rollout(
    head: ACTLossHead, batch: Batch, return_keys: Collection[str], effort: Effort
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums and wanted outputs of the rollout that is chosen for each row.

    The first rollout has no noise and no disguise. Beside the metrics of the chosen ones the sums hold in how many rows
    the first one (`pass_plain`) and at least one (`pass_any`) is right.
    """
    choice = CHOICES[effort.choose]()
    right: list[Tensor] = []
    for number in range(effort.rollouts):
        carry, outputs = roll_out(head.model, batch, effort, number)
        right.append(is_right(outputs, batch))
        choice.add(number, outputs)
    _, _, sums, wanted, _ = head.score(carry, choice.best, return_keys)
    is_counted = (batch["labels"] != IGNORE_LABEL_ID).any(-1)
    return sums | {
        "pass_plain": (is_counted & right[0]).sum(),
        "pass_any": (is_counted & torch.stack(right).any(0)).sum(),
    }, wanted


def roll_out(model: ActModel, batch: Batch, effort: Effort, number: int) -> tuple[Carry, dict[str, Tensor]]:
    """All supervision steps of one rollout, and what the last one gave, of the puzzles without their disguise."""
    disguise = effort.disguise([effort.seed, number]) if effort.disguise is not None and number > 0 else None
    cells = names = None
    plain = batch["inputs"]
    if disguise is not None:
        cells, names = (to_device(torch.from_numpy(part).long(), plain.device) for part in disguise)
        batch = batch | {"inputs": names[plain.long()[:, cells]].to(plain.dtype)}
    carry = started(model, batch)
    signs = signs_of_rows(batch, model.config.hidden_size, effort.seed)
    for step in range(model.inner.depth.max_steps):
        if number > 0 and effort.noise:
            carry.inner_carry = with_noise(carry.inner_carry, effort, signs, number, step)
        carry, outputs = model(carry, batch)
    if cells is not None and names is not None:
        carry.current_data = carry.current_data | {"inputs": plain}
        outputs = outputs | {"logits": outputs["logits"][:, cells.argsort()][..., names]}
    return carry, outputs


def started(model: ActModel, batch: Batch) -> Carry:
    """The carry of rows that have taken in their data, and no supervision step yet."""
    core = model.inner
    with weights_cast_once(core, core.dtype):
        latents = core.initial_latents(core.embed(batch))
    carry = model.initial_carry(batch)
    return Carry(latents, carry.steps, halted=torch.zeros_like(carry.halted), current_data=batch)


def with_noise(latents: Latents, effort: Effort, signs: Tensor, number: int, step: int) -> Latents:
    """Gaussian noise that depends on seed, rollout, step and puzzle alone.

    It is drawn once for all rows, on the host, and each row turns the signs of its own half of the dimensions: that
    leaves it Gaussian, uncorrelated between puzzles, and the same whatever the batches, ranks and devices are.
    """
    rng = np.random.default_rng([effort.seed, number, step])
    noisy = []
    for state in latents:
        noise = torch.from_numpy(rng.standard_normal(state.shape[1:], dtype=np.float32)).to(
            state.device
        )  # (L, D), of each chain
        own = signs.view(len(signs), *[1] * (state.ndim - 2), -1)
        noisy.append((state + effort.noise * noise * own).to(state.dtype))
    return type(latents)(*noisy)


def signs_of_rows(batch: Batch, width: int, seed: int) -> Tensor:
    """(B, D) of -1 and 1: for each row a hash of its puzzle, in whole numbers that wrap around."""
    puzzle = torch.cat((batch["inputs"], batch["puzzle_identifiers"].unsqueeze(1)), dim=1).long()
    rng = np.random.default_rng(seed)
    weights, factors, shifts = (
        torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size)).to(puzzle.device)
        for size in (puzzle.shape[1], width, width)
    )
    keys = (puzzle * weights).sum(-1, keepdim=True)
    return 1.0 - 2.0 * (((keys * (factors | 1) + shifts) >> 62) & 1)  # the highest bits are the best mixed ones


def is_right(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Which rows (B,) are solved."""
    is_correct = outputs["logits"].argmax(-1) == batch["labels"]  # (B, S)
    return (is_correct | (batch["labels"] == IGNORE_LABEL_ID)).all(-1)
