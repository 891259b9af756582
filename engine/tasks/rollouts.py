"""Tries a puzzle several times, each in a disguise or with noise of its own, and takes the answer of which the model is surest.

B rows, S tokens, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

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

    def depth_of(self, config: ArchConfig) -> Depth:
        depth = config.depth_at(1.0)
        return depth._replace(max_steps=self.halt_max_steps or depth.max_steps)


ONE_TRY = Effort()


def surest_rollout(
    head: ACTLossHead, batch: Batch, return_keys: Collection[str], effort: Effort
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums and wanted outputs of each row's rollout with the highest final halting logit.

    The first rollout has no noise and no disguise, and wins ties. Beside the metrics of the chosen ones the sums hold in
    how many rows the first one (`pass_plain`) and at least one (`pass_any`) is right.
    """
    is_counted = (batch["labels"] != IGNORE_LABEL_ID).any(-1)
    carry, best = roll_out(head.model, batch, effort, number=0)
    is_plain_right = is_any_right = is_right(best, batch)
    for number in range(1, effort.rollouts):
        carry, outputs = roll_out(head.model, batch, effort, number)
        is_any_right = is_any_right | is_right(outputs, batch)
        is_surer = outputs["q_halt_logits"] > best["q_halt_logits"]
        best = {
            name: torch.where(is_surer.view(-1, *[1] * (value.ndim - 1)), outputs[name], value)
            for name, value in best.items()
        }
    _, _, sums, wanted, _ = head.score(carry, best, return_keys)
    return sums | {
        "pass_plain": (is_counted & is_plain_right).sum(),
        "pass_any": (is_counted & is_any_right).sum(),
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
