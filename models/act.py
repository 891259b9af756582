"""What all recursive architectures share: embedding, carry, halting, exploration, reset of finished rows, heads.

An architecture file adds its latents and its recursion. B batch, S tokens, P puzzle prefix, L = P + S positions,
D hidden, V vocabulary.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import AttentionMask, build_mask
from models.common import trunc_normal
from models.config import ArchConfig
from models.layers import (
    AttentionContext,
    Block,
    CastedEmbedding,
    CastedLinear,
    Level,
    RotaryEmbedding,
    weights_cast_once,
)
from models.sparse_embedding import CastedSparseEmbedding

Batch = dict[str, Tensor]
Latents = Any  # each architecture's own NamedTuple of (B, L, D) tensors
Step = Callable[[Latents, Tensor, AttentionContext], tuple[Latents, list[Tensor]]]  # see RecursiveCore.step


@dataclass
class Carry:
    """What a row keeps between two supervision steps."""

    inner_carry: Latents
    steps: Tensor  # (B,) int32, supervision steps this row has had
    halted: Tensor  # (B,) bool, the row is finished and takes new data at the next call
    current_data: Batch


class NetworkCalls:
    """Makes the network calls of one supervision step; only the last `with_grad` of `total` carry gradient."""

    def __init__(self, context: AttentionContext, total: int, with_grad: int) -> None:
        self.context = context
        self.first_with_grad = total - with_grad
        self.made = 0
        self.answers: list[Tensor] = []  # the answer after each cycle that carries gradient

    def __call__(self, level: Level, state: Tensor) -> Tensor:
        carries_gradient = torch.is_grad_enabled() and self.made >= self.first_with_grad
        self.made += 1
        with torch.set_grad_enabled(carries_gradient):
            return level(state, self.context)

    def cycle_ended(self, answer: Tensor) -> None:
        """The recursion has a new answer; it may be supervised."""
        if self.made > self.first_with_grad:
            self.answers.append(answer)


class RecursiveCore(nn.Module):
    """Embedding, latents and heads around a recursion; subclasses name the latents and write the recursion."""

    Latents: ClassVar[Any]  # NamedTuple of the latent states
    answer: ClassVar[str] = "z_H"  # the latent that the heads read
    levels: ClassVar[tuple[str, ...]] = ("L_level",)  # names of the networks

    H_level: Level
    L_level: Level

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        self.config = config
        self.depth = config.depth_at(1.0)
        self.dtype: torch.dtype = getattr(torch, config.forward_dtype)
        width = config.hidden_size

        self.embed_tokens = CastedEmbedding(config.vocab_size, width, 1 / config.embed_scale, self.dtype)
        self.lm_head = CastedLinear(width, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.embedding_weight
        self.q_head = CastedLinear(width, 2, bias=True)
        nn.init.zeros_(self.q_head.weight)
        assert self.q_head.bias is not None
        nn.init.constant_(self.q_head.bias, -5.0)  # a fresh model should not want to halt

        self.puzzle_emb = (
            CastedSparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim, 0.0, self.dtype)
            if config.puzzle_emb_ndim
            else None
        )
        if config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(config.total_len, width, 1 / config.embed_scale, self.dtype)
        elif config.pos_encodings == "rope" and not config.mlp_t:
            self.rotary_emb = RotaryEmbedding(width // config.num_heads, config.total_len, config.rope_theta)

        for name in self.levels:
            self.add_module(name, self._level(config.H_layers if name == "H_level" else config.L_layers))
        for name in self.Latents._fields:
            self.register_buffer(name.removeprefix("z_") + "_init", trunc_normal(width, std=1.0, dtype=self.dtype))

    def _level(self, num_blocks: int) -> Level:
        c = self.config
        mix_len = c.total_len if c.mlp_t else None
        return Level(
            [Block(c.hidden_size, c.num_heads, c.expansion, norm=c.norm, mix_len=mix_len) for _ in range(num_blocks)]
        )

    # What an architecture adds.
    def recurse(self, z: Latents, x: Tensor, call: NetworkCalls) -> Latents:
        """One supervision step: refine the latents z with the embedded input x (B, L, D)."""
        raise TypeError(f"{type(self).__name__} must define its recursion")

    def calls_per_step(self) -> int:
        """Network calls of one supervision step."""
        return self.depth.H_cycles * (self.depth.L_cycles + 1)

    def calls_in_last_cycle(self) -> int:
        """How many of them carry gradient in the reference."""
        return self.depth.L_cycles + 1

    # What all share.
    def calls_with_grad(self) -> int:
        wanted = self.depth.grad_cycles
        if wanted == "last_cycle":
            return self.calls_in_last_cycle()
        return self.calls_per_step() if wanted == "all" else min(int(wanted), self.calls_per_step())

    def embed(self, batch: Batch) -> Tensor:
        """Tokens, puzzle prefix and learned positions, at unit variance: (B, L, D)."""
        c = self.config
        x = self.embed_tokens(batch["inputs"].int())
        if self.puzzle_emb is not None:
            rows = self.puzzle_emb(batch["puzzle_identifiers"])
            prefix = F.pad(rows, (0, c.prefix_len * c.hidden_size - c.puzzle_emb_ndim))
            x = torch.cat((prefix.view(-1, c.prefix_len, c.hidden_size), x), dim=1)
        if c.pos_encodings == "learned":
            positions = self._positions(batch)
            x = 0.707106781 * (
                x + self.embed_pos(torch.arange(x.shape[1], device=x.device) if positions is None else positions)
            )
        return c.embed_scale * x

    def context(self, batch: Batch) -> AttentionContext:
        """Positions and mask, built once a batch and shared by all its network calls."""
        c = self.config
        if c.mlp_t:
            return AttentionContext(None, AttentionMask())
        mask = build_mask(
            causal=c.causal,
            documents=batch.get("documents"),
            is_prompt=batch["is_prompt"] if c.prefix_mask else None,
            dtype=self.dtype,
            prefix_len=c.prefix_len,
        )
        if c.pos_encodings != "rope":
            return AttentionContext(None, mask)
        length = c.prefix_len + batch["inputs"].shape[1]
        return AttentionContext(self.rotary_emb(self._positions(batch), length), mask)

    def _positions(self, batch: Batch) -> Tensor | None:
        """Positions (B, L) where documents share a row; None where every row simply counts from 0."""
        positions = batch.get("positions")
        if positions is None or not self.config.prefix_len:
            return positions
        prefix = torch.arange(self.config.prefix_len, device=positions.device).expand(positions.shape[0], -1)
        return torch.cat((prefix, positions + self.config.prefix_len), dim=1)

    def initial_latents(self, x: Tensor) -> Latents:
        """Fixed random vectors, or the embedded input as a first answer."""
        start = [getattr(self, name.removeprefix("z_") + "_init").expand_as(x) for name in self.Latents._fields]
        z = self.Latents(*start)
        return z._replace(**{self.answer: x.to(self.dtype)}) if self.config.latent_init == "embedding" else z

    def unroll(
        self,
        batch: Batch,
        num_steps: int,
        *,
        carried: tuple[Latents, Tensor] | None = None,
        detach: bool = False,
        contexts: Iterable[AttentionContext] | None = None,
        step: Step | None = None,
    ) -> Generator[tuple[Latents, list[Tensor]], None, None]:
        """Yields the latents and the answers to supervise (the final one last) after each of `num_steps` supervision steps.

        `carried` holds latents of earlier steps and flags (B,) of the rows that start from the initial ones instead.
        With `detach` no gradient flows from a step into the one before: whoever reads calls backward on the loss of each
        step before asking for the next. `contexts`, one for each step, and `step` stand in for the core's own.
        """
        step = step or self.step
        with weights_cast_once(self, self.dtype):
            x = embedded = self.embed(batch)
            if detach:
                x = embedded.detach().requires_grad_()  # collects the gradients of all steps
            z = self.initial_latents(x)
            if carried is not None:
                z = _where(carried[1], z, carried[0])
            contexts = repeat(self.context(batch)) if contexts is None else contexts
            for _, context in zip(range(num_steps), contexts, strict=False):
                z, answers = step(z, x, context)
                yield z, answers
                if detach:
                    z = detached(z)
            if detach and x.grad is not None and embedded.requires_grad:
                embedded.backward(x.grad)

    def step(self, z: Latents, x: Tensor, context: AttentionContext) -> tuple[Latents, list[Tensor]]:
        """One supervision step; returns the latents and the answers to supervise, the final one last."""
        call = NetworkCalls(context, self.calls_per_step(), self.calls_with_grad())
        z = self.recurse(z, x, call)
        return z, call.answers if self.config.supervise == "cycle" else call.answers[-1:]

    def hidden(self, answer: Tensor) -> Tensor:
        """What the output head reads: (B, S, D), the prefix cut off."""
        return answer[:, self.config.prefix_len :]

    def q_logits(self, z: Latents) -> tuple[Tensor, Tensor]:
        """Halt and continue, read at the first position: the puzzle prefix where there is one."""
        q = self.q_head(getattr(z, self.answer)[:, 0]).float()
        return q[..., 0], q[..., 1]


class ExplorationDraws(NamedTuple):
    """Where random numbers come from when rows of one step are spread over ranks or micro-batches.

    All draw the whole step's numbers and use those of their own rows, so that the split changes nothing.
    """

    generator: torch.Generator | None
    total_rows: int
    first_row: int


class ActModel(nn.Module):
    """Adaptive computation time: a call is one supervision step; finished rows take the new data, others keep theirs."""

    core_class: ClassVar[type[RecursiveCore]]
    config_class: ClassVar[type[ArchConfig]] = ArchConfig

    def __init__(self, config: dict[str, Any] | ArchConfig) -> None:
        super().__init__()
        self.config = config if isinstance(config, ArchConfig) else self.config_class.model_validate(config)
        self.inner = self.core_class(self.config)
        self.draws: ExplorationDraws | None = None

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
        core = self.inner
        with closing(core.unroll(carry.current_data, 2, carried=(carry.inner_carry, carry.halted))) as steps:
            z, answers = next(steps)
            logits = core.lm_head(core.hidden(answers[-1]))  # (B, S, V)
            q_halt, q_continue = core.q_logits(z)
            outputs = {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}

            carry.inner_carry, carry.steps = detached(z), carry.steps + 1
            is_last = carry.steps >= core.depth.max_steps
            carry.halted = self._halted(is_last, carry.steps, q_halt.detach(), q_continue.detach())
            if self.training and core.depth.max_steps > 1 and self.trains_q_continue:
                with torch.no_grad():  # the value of a further step, bootstrapped from one step ahead
                    next_halt, next_continue = core.q_logits(next(steps)[0])
                    value = torch.where(is_last, next_halt, torch.maximum(next_halt, next_continue))
                    outputs["target_q_continue"] = torch.sigmoid(value)
        return carry, outputs

    def _taken_in(self, carry: Carry, batch: Batch) -> Carry:
        """Finished rows take the new data and count from zero."""
        return Carry(
            inner_carry=carry.inner_carry,
            steps=torch.where(carry.halted, 0, carry.steps),
            halted=carry.halted,
            current_data={
                key: torch.where(_rows(carry.halted, old), batch[key], old) for key, old in carry.current_data.items()
            },
        )

    def _halted(self, is_last: Tensor, steps: Tensor, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Evaluation always runs all steps, so that rows of a batch stay in step."""
        limit = self.inner.depth.max_steps
        if not self.training or limit == 1:
            return is_last
        halted = is_last | ((q_halt > q_continue) if self.halts_by_comparison else (q_halt > 0))
        return halted & (steps >= self._explored_steps(steps))

    def _explored_steps(self, steps: Tensor) -> Tensor:
        """For a few random rows a number of steps that they must take before they may halt."""
        draws = self.draws or ExplorationDraws(None, steps.shape[0], 0)
        device = steps.device if draws.generator is None else draws.generator.device
        explores = (
            torch.rand(draws.total_rows, generator=draws.generator, device=device) < self.config.halt_exploration_prob
        )
        wanted = torch.randint(
            2,
            self.inner.depth.max_steps + 1,
            (draws.total_rows,),
            dtype=torch.int32,
            generator=draws.generator,
            device=device,
        )
        return (explores * wanted)[draws.first_row : draws.first_row + steps.shape[0]].to(steps.device)


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    """Row flags (B,) in a shape that broadcasts against `like` (B, ...)."""
    return flags.view(-1, *([1] * (like.ndim - 1)))


def _where(flags: Tensor, new: Latents, old: Latents) -> Latents:
    """The new latents in the rows that are flagged (B,), the old ones in the others."""
    return type(new)(*(torch.where(_rows(flags, n), n, o) for n, o in zip(new, old, strict=True)))


def detached(z: Latents) -> Latents:
    return type(z)(*(state.detach() for state in z))
