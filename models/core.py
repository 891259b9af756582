"""The recursion that all architectures share: embedding, latents, one unroll of supervision steps, heads.

An architecture file adds its latents and its recursion. B batch, S tokens, P puzzle prefix, L = P + S positions,
D hidden, V vocabulary.
"""

from collections import Counter
from collections.abc import Generator, Iterable
from functools import partial
from itertools import repeat
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.common import Batch
from models.attention import AttentionMask, build_mask
from models.calls import CountedCalls, Network, NetworkCalls, plain_call
from models.config import ArchConfig
from models.layers import (
    AttentionContext,
    Block,
    BoardConv,
    CastedEmbedding,
    CastedLinear,
    Level,
    trunc_normal,
    weights_cast_once,
)
from models.rotary import RotaryEmbedding
from models.sparse_embedding import CastedSparseEmbedding

Latents = Any  # each architecture's own NamedTuple of (B, L, D) tensors


class RecursiveCore(nn.Module):
    """Embedding, latents and heads around a recursion; subclasses name the latents and write the recursion."""

    Latents: ClassVar[Any]  # NamedTuple of the latent states
    answer: ClassVar[str] = "z_H"  # the latent that the heads read
    levels: ClassVar[tuple[str, ...]] = ("L_level",)  # names of the networks

    H_level: Level
    L_level: Level
    registers: Tensor

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        self.config = config
        self.depth = config.depth_at(1.0)
        self.network: Network = plain_call
        self.masks_in_blocks = False  # what a mask hides is skipped, which only compiled code on CUDA does
        self.has_single_documents = False  # rows hold one each, so that "everybody before" is all their mask says
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
        elif config.pos_encodings == "rope2d":
            self.rotary_emb = RotaryEmbedding(
                width // config.num_heads, config.total_len, config.rope_theta, config.side
            )

        mix_len = config.total_len if config.mlp_t else None
        around = partial(BoardConv, kernel=config.board_conv, side=config.side) if config.board_conv else None
        for name in self.levels:
            count = config.H_layers if name == "H_level" else config.L_layers
            blocks = (
                Block(
                    width,
                    config.num_heads,
                    config.expansion,
                    norm=config.norm,
                    mix_len=mix_len,
                    feed_forward=config.feed_forward,
                    around=around,
                )
                for _ in range(count)
            )
            self.add_module(name, Level(list(blocks)))
        for name in self.Latents._fields:
            self.register_buffer(name.removeprefix("z_") + "_init", trunc_normal(width, std=1.0, dtype=self.dtype))
        if config.registers:
            self.register_buffer("registers", trunc_normal(config.registers, width, std=1.0, dtype=self.dtype))

    @property
    def has_mask(self) -> bool:
        """Whether texts need more than the mask "everybody before"."""
        return self.config.causal and (self.config.prefix_mask or not self.has_single_documents)

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

    def passes_of_step(self, step: int, num_steps: int) -> tuple[Counter[nn.Module], int]:
        """What supervision step number `step`, from 0, of `num_steps` costs at the present depth: passes of each network
        and of the output head, one with gradient counting three times."""
        call = CountedCalls(self.calls_per_step(), self.calls_with_grad(step, num_steps))
        nothing = torch.zeros(1, 1, 1)
        self.recurse(self.Latents(*(nothing for _ in self.Latents._fields)), nothing, call)
        learns = self.config.supervise != "last" or step == num_steps - 1
        return call.passes, (3 if learns else 1) * (len(call.answers) if self.config.supervise == "cycle" else 1)

    # What all share.
    def calls_with_grad(self, step: int = 0, num_steps: int = 1) -> int:
        """How many of them carry gradient in supervision step number `step`, from 0, of `num_steps`.

        With supervise=last they are counted from the end of the last step, otherwise from the end of each.
        """
        if self.config.supervise != "last":
            step, num_steps = 0, 1
        wanted, calls = self.depth.grad_cycles, self.calls_per_step()
        if wanted == "last_cycle":
            counted = self.calls_in_last_cycle()
        elif wanted in ("all", "half"):
            counted = calls * num_steps if wanted == "all" else -(-calls * num_steps // 2)
        else:
            counted = int(wanted)
        return min(calls, max(0, counted - calls * (num_steps - 1 - step)))

    def embed(self, batch: Batch) -> Tensor:
        """Puzzle embedding, registers, tokens and learned positions, at unit variance: (B, L, D)."""
        c = self.config
        x = self.embed_tokens(batch["inputs"].int())
        if c.registers:
            x = torch.cat((self.registers.expand(x.shape[0], -1, -1) / c.embed_scale, x), dim=1)
        if self.puzzle_emb is not None:
            rows = self.puzzle_emb(batch["puzzle_identifiers"])
            prefix = F.pad(rows, (0, c.puzzle_len * c.hidden_size - c.puzzle_emb_ndim))
            x = torch.cat((prefix.view(-1, c.puzzle_len, c.hidden_size), x), dim=1)
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
            documents=None if self.has_single_documents else batch.get("documents"),
            is_prompt=batch["is_prompt"] if c.prefix_mask else None,
            dtype=self.dtype,
            prefix_len=c.prefix_len,
            in_blocks=self.masks_in_blocks,
        )
        if c.pos_encodings not in ("rope", "rope2d"):
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
        """Fixed random vectors; the answer begins as the embedded input, or has it added, where the config says so."""
        start = (getattr(self, name.removeprefix("z_") + "_init").expand_as(x) for name in self.Latents._fields)
        z = self.Latents(*(state.contiguous() for state in start))  # in the layout of later states
        if self.config.latent_init == "embedding":
            return z._replace(**{self.answer: x.to(self.dtype)})
        if self.config.injection == "start":
            return z._replace(**{self.answer: (getattr(z, self.answer) + x).to(self.dtype)})
        return z

    def unroll(
        self,
        batch: Batch,
        num_steps: int,
        *,
        carried: tuple[Latents, Tensor] | None = None,
        detach: bool = False,
        contexts: Iterable[AttentionContext] | None = None,
        network: Network | None = None,
    ) -> Generator[tuple[Latents, list[Tensor]], None, None]:
        """Yields the latents and the answers to supervise (the final one last) after each of `num_steps` supervision steps.

        `carried` holds latents of earlier steps and flags (B,) of the rows that start from the initial ones instead.
        With `detach` no gradient flows from a step into the one before: whoever reads calls backward on the loss of each
        step before asking for the next. `contexts`, one for each step, and `network` stand in for the core's own.
        """
        with weights_cast_once(self, self.dtype):
            x = embedded = self.embed(batch)
            if detach:
                x = embedded.detach().requires_grad_()  # collects the gradients of all steps
            z = self.initial_latents(x)
            if carried is not None:
                z = replaced_rows(carried[1], z, carried[0])
            contexts = repeat(self.context(batch)) if contexts is None else contexts
            injected = torch.zeros_like(x) if self.config.injection == "start" else x
            for number, context in zip(range(num_steps), contexts, strict=False):
                z, answers = self.step(z, injected, context, self.calls_with_grad(number, num_steps), network)
                yield z, answers
                if detach:
                    z = detached(z)
            if detach and x.grad is not None and embedded.requires_grad:
                embedded.backward(x.grad)

    def step(
        self,
        z: Latents,
        x: Tensor,
        context: AttentionContext,
        calls_with_grad: int | None = None,
        network: Network | None = None,
    ) -> tuple[Latents, list[Tensor]]:
        """One supervision step; returns the latents and the answers to supervise, the final one last."""
        with_grad = self.calls_with_grad() if calls_with_grad is None else calls_with_grad
        call = NetworkCalls(context, self.calls_per_step(), with_grad, network or self.network)
        z = self.recurse(z, x, call)
        return z, call.answers if self.config.supervise == "cycle" else call.answers[-1:]

    def hidden(self, answer: Tensor) -> Tensor:
        """What the output head reads: (B, S, D), the prefix cut off."""
        return answer[:, self.config.prefix_len :]

    def q_logits(self, z: Latents) -> tuple[Tensor, Tensor]:
        """Halt and continue, read at the first position: the puzzle prefix where there is one."""
        q = self.q_head(getattr(z, self.answer)[:, 0]).float()
        return q[..., 0], q[..., 1]


def in_rows(flags: Tensor, like: Tensor) -> Tensor:
    """Row flags (B,) in a shape that broadcasts against `like` (B, ...)."""
    return flags.view(-1, *([1] * (like.ndim - 1)))


def replaced_rows(flags: Tensor, new: Latents, old: Latents) -> Latents:
    """The new latents in the rows that are flagged (B,), the old ones in the others."""
    return type(new)(*(torch.where(in_rows(flags, n), n, o) for n, o in zip(new, old, strict=True)))


def zeroed(flags: Tensor, z: Latents) -> Latents:
    """The latents with zeros in the rows that are flagged (B,)."""
    return replaced_rows(flags, type(z)(*(torch.zeros_like(state) for state in z)), z)


def detached(z: Latents) -> Latents:
    return type(z)(*(state.detach() for state in z))
