"""Adaptive computation time: carry, halting, exploration, reset of finished rows; the same for all architectures.

B batch, S tokens, L positions (puzzle prefix included), D hidden, V vocabulary.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dataset.common import Batch
from models.config import ArchConfig
from models.core import Latents, RecursiveCore, detached, in_rows
from models.sparse_embedding import CastedSparseEmbedding


@dataclass
class Carry:
    """What a row keeps between two supervision steps."""

    inner_carry: Latents
    steps: Tensor  # (B,) int32, supervision steps this row has had
    halted: Tensor  # (B,) bool, the row is finished and takes new data at the next call
    current_data: Batch


class ActModel(nn.Module):
    """Adaptive computation time: a call is one supervision step; finished rows take the new data, others keep theirs."""

    core_class: ClassVar[type[RecursiveCore]]
    config_class: ClassVar[type[ArchConfig]] = ArchConfig

    def __init__(self, config: dict[str, Any] | ArchConfig) -> None:
        super().__init__()
        self.config = config if isinstance(config, ArchConfig) else self.config_class.model_validate(config)
        self.inner = self.core_class(self.config)
        self.explored: Tensor | None = None  # (B,) what `explored_steps` drew for the next call; None: it draws
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] | None = (
            None  # of logits and labels, where a loss head trains it
        )

    @property
    def puzzle_emb(self) -> CastedSparseEmbedding | None:
        return self.inner.puzzle_emb

    @property
    def halts_by_comparison(self) -> bool:
        """Whether a row halts on q_halt > q_continue instead of q_halt > 0."""
        return not self.config.no_ACT_continue

    @property
    def trains_q_continue(self) -> bool:
        """Whether training computes the value of going on, which costs one more step without gradient."""
        return self.halts_by_comparison

    def initial_carry(self, batch: Batch) -> Carry:
        rows = batch["inputs"].shape[0]
        device = batch["inputs"].device
        empty = torch.zeros(rows, self.config.total_len, self.config.hidden_size, dtype=self.inner.dtype, device=device)
        return Carry(
            inner_carry=self.inner.Latents(*(empty for _ in self.inner.Latents._fields)),
            steps=torch.zeros(rows, dtype=torch.int32, device=device),
            halted=torch.ones(rows, dtype=torch.bool, device=device),
            current_data={key: torch.empty_like(value) for key, value in batch.items()},
        )

    def forward(self, carry: Carry, batch: Batch) -> tuple[Carry, dict[str, Tensor]]:
        carry = self._taken_in(carry, batch)
        is_last = carry.steps + 1 >= self.inner.depth.max_steps
        z, outputs = self.supervised_step(carry, is_last)
        carry.inner_carry, carry.steps = detached(z), carry.steps + 1
        q_halt, q_continue = outputs["q_halt_logits"].detach(), outputs["q_continue_logits"].detach()
        carry.halted = self._halted(is_last, carry.steps, q_halt, q_continue)
        return carry, outputs

    def supervised_step(self, carry: Carry, is_last: Tensor) -> tuple[Latents, dict[str, Tensor]]:
        """Latents after one more step of every row, and what is read off them; `is_last` (B,): there is no further one."""
        core = self.inner
        with closing(core.unroll(carry.current_data, 2, carried=(carry.inner_carry, carry.halted))) as steps:
            z, answers = next(steps)
            outputs = self.read(z, answers)
            if self.training and core.depth.max_steps > 1 and self.trains_q_continue:
                with torch.no_grad():  # the value of a further step, bootstrapped from one step ahead
                    next_halt, next_continue = core.q_logits(next(steps)[0])
                    value = torch.where(is_last, next_halt, torch.maximum(next_halt, next_continue))
                    outputs["target_q_continue"] = torch.sigmoid(value)
        return z, outputs

    def read(self, z: Latents, answers: list[Tensor]) -> dict[str, Tensor]:
        """What the heads make of the latents and answers of a step."""
        core = self.inner
        logits = core.lm_head(core.hidden(answers[-1]))  # (B, S, V)
        q_halt, q_continue = core.q_logits(z)
        return {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}

    def _taken_in(self, carry: Carry, batch: Batch) -> Carry:
        """Finished rows take the new data and count from zero."""
        return Carry(
            inner_carry=carry.inner_carry,
            steps=torch.where(carry.halted, 0, carry.steps),
            halted=carry.halted,
            current_data={
                key: torch.where(in_rows(carry.halted, old), batch[key], old) for key, old in carry.current_data.items()
            },
        )

    def _halted(self, is_last: Tensor, steps: Tensor, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Evaluation always runs all steps, so that rows of a batch stay in step."""
        limit = self.inner.depth.max_steps
        if not self.training or limit == 1:
            return is_last
        halted = is_last | ((q_halt > q_continue) if self.halts_by_comparison else (q_halt > 0))
        return halted & (steps >= (self.explored_steps(len(steps), None) if self.explored is None else self.explored))

    def explored_steps(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """For a few random rows a number of steps that they must take before they may halt; on the generator's device,
        or, from torch's own random numbers, on the model's."""
        device = self.inner.q_head.weight.device if generator is None else generator.device
        limit = self.inner.depth.max_steps
        if limit == 1:
            return torch.zeros(rows, dtype=torch.int32, device=device)
        explores = torch.rand(rows, generator=generator, device=device) < self.config.halt_exploration_prob
        wanted = torch.randint(2, limit + 1, (rows,), dtype=torch.int32, generator=generator, device=device)
        return explores * wanted
