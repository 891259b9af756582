"""Several chains of thought about one puzzle: all of them try a supervision step, and the best one answers for all.

B batch, K chains, S tokens, L positions (prefix included), D hidden size.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from dataset.common import Batch
from models.act import ActModel, Carry
from models.calls import CountedCalls
from models.config import ArchConfig
from models.core import Latents, RecursiveCore, replaced_rows
from models.layers import trunc_normal, weights_cast_once


class ChainsConfig(ArchConfig):
    """Of an architecture whose thought z_L is another latent than its answer z_H."""

    chains: int = Field(
        1,
        ge=1,
        description="puzzles: thoughts that try every supervision step; the best one learns and answers for all",
    )

    def own_problems(self) -> list[str]:
        if self.chains == 1 or self.no_ACT_continue:
            return []
        return [f"chains={self.chains} never learns the value of going on. Set no_ACT_continue=true, or chains=1"]


class ChainsCore(RecursiveCore):
    """Where each chain starts, and what a step of them costs; with one chain, a core like any other."""

    config: ChainsConfig
    chains_init: Tensor  # (K - 1, D), the start of every thought after the first

    def __init__(self, config: ChainsConfig) -> None:
        super().__init__(config)
        if config.chains > 1:
            starts = trunc_normal(config.chains - 1, config.hidden_size, std=1.0, dtype=self.dtype)
            self.register_buffer("chains_init", starts)

    def initial_latents(self, x: Tensor) -> Latents:
        """With several chains z_L is (B, K, L, D)."""
        z = super().initial_latents(x)
        if self.config.chains == 1:
            return z
        others = self.chains_init[:, None].expand(len(x), -1, *x.shape[1:])
        return z._replace(z_L=torch.cat((z.z_L.unsqueeze(1), others), dim=1))

    def cycles_with_grad(self) -> int:
        """In how many of a supervision step's last cycles some network call carries gradient."""
        return -(-self.calls_with_grad() // (self.depth.L_cycles + 1))

    @contextmanager
    def cycles(self, number: int) -> Iterator[None]:
        """Within, a supervision step has so many cycles."""
        whole, self.depth = self.depth, self.depth._replace(H_cycles=number)
        try:
            yield
        finally:
            self.depth = whole

    def passes_of_step(self, step: int, num_steps: int) -> tuple[Counter[nn.Module], int]:
        if self.config.chains == 1:
            return super().passes_of_step(step, num_steps)
        nothing = torch.zeros(1, 1, 1)
        tried = CountedCalls(self.calls_per_step(), with_grad=0)
        self.recurse(self.Latents(nothing, nothing), nothing, tried)
        with_grad = self.calls_with_grad()
        with self.cycles(self.cycles_with_grad()):
            learned = CountedCalls(self.calls_per_step(), with_grad)
            self.recurse(self.Latents(nothing, nothing), nothing, learned)
        for network, times in tried.passes.items():
            learned.passes[network] += self.config.chains * times
        return learned.passes, self.config.chains + 3


class ChainsModel(ActModel):
    """Before a supervision step all K chains have the same answer z_H, and each a thought z_L of its own.

    All try the step without gradient, as K rows for each puzzle. The best one then repeats the cycles that are to carry
    gradient, from where it stood before them: K chains keep no more for backward than one does.
    """

    config_class = ChainsConfig
    config: ChainsConfig
    inner: ChainsCore

    def initial_carry(self, batch: Batch) -> Carry:
        carry = super().initial_carry(batch)
        if self.config.chains > 1:
            z = carry.inner_carry
            carry.inner_carry = z._replace(z_L=z.z_L.unsqueeze(1).expand(-1, self.config.chains, -1, -1))
        return carry

    def supervised_step(self, carry: Carry, is_last: Tensor) -> tuple[Latents, dict[str, Tensor]]:
        if self.config.chains == 1:
            return super().supervised_step(carry, is_last)
        core, chains, data = self.inner, self.config.chains, carry.current_data
        with_grad, repeated = core.calls_with_grad(), core.cycles_with_grad()
        with weights_cast_once(core, core.dtype):
            x, context = core.embed(data), core.context(data)
            z = replaced_rows(carry.halted, core.initial_latents(x), carry.inner_carry)
            with torch.no_grad():  # all chains, (B * K, L, D)
                each = z._replace(z_H=z.z_H.repeat_interleave(chains, dim=0), z_L=z.z_L.flatten(0, 1))
                x_of_each = x.repeat_interleave(chains, dim=0)
                with core.cycles(core.depth.H_cycles - repeated):
                    before, _ = core.step(each, x_of_each, context)
                with core.cycles(repeated):
                    after, answers = core.step(before, x_of_each, context)
                tried = self.read(after, answers)
                best = self.best_chains(tried, data)
            if torch.is_grad_enabled():
                with core.cycles(repeated):
                    won, answers = core.step(_rows(before, best), x, context, with_grad)
                outputs = self.read(won, answers)
            else:
                won, outputs = _rows(after, best), {name: value[best] for name, value in tried.items()}
        thoughts = after.z_L.index_copy(0, best, won.z_L.detach())
        return won._replace(z_L=thoughts.unflatten(0, (-1, chains))), outputs

    def best_chains(self, tried: dict[str, Tensor], data: Batch) -> Tensor:
        """The best chain's row (B,) among the B * K that were tried: in training the one with the lowest loss, otherwise
        the one with the highest halting logit; the first of equals."""
        chains = self.config.chains
        if self.training and self.loss_fn is not None:
            losses = self.loss_fn(tried["logits"], data["labels"].repeat_interleave(chains, dim=0)).sum(-1)
        else:
            losses = -tried["q_halt_logits"]
        best = losses.view(-1, chains).argmin(dim=1)
        return torch.arange(len(best), device=best.device) * chains + best


def _rows(z: Latents, rows: Tensor) -> Latents:
    return type(z)(*(state[rows] for state in z))
