"""RetNet: a causal language model that remembers a text in a state whose size does not grow with it.

Trained on whole rows at once, it reads on token by token from the state alone. B rows, L positions, D hidden, N heads,
K size of a query or key, E of a value.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dataset.common import Batch
from models.act import ActModel
from models.calls import NetworkCalls
from models.core import RecursiveCore
from models.kernels import rms_norm, rotate
from models.layers import CastedLinear, SwiGLU
from models.retnet.config import FIRST_LOGIT_STD, RetNetConfig
from models.retnet.retention import Decays, Kernels, has_kernels, log_decays, read_on
from models.rotary import Rope

Retain = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k (B, L, N, K), v (B, L, N, E) -> (B, L, N, E)


class Norm(nn.Module):
    """Root mean square norm with a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight.to(x.dtype)


class Retention(nn.Module):
    """Multi-scale retention: every head remembers for a different while, is normed by itself and gated."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.num_heads, self.chunk_size = config.num_heads, config.chunk_size
        self.widths = [2 * config.hidden_size] + 2 * [config.value_expansion * config.hidden_size]
        self.qkvg_proj = CastedLinear(config.hidden_size, sum(self.widths))
        self.o_proj = CastedLinear(self.widths[-1], config.hidden_size)

    @property
    def fused_matrices(self) -> tuple[nn.Parameter, list[int]]:
        """As that of `models.layers.Attention`."""
        both, *others = self.widths
        return self.qkvg_proj.weight, [both // 2, both // 2, *others]

    def products_of_position(self, length: int) -> int:
        """Multiplications of retention itself for each of L positions, beside those of the projections."""
        size, keys, values = min(self.chunk_size, length), self.widths[0] // 2, self.widths[1]
        over_chunks = 2 * keys // self.num_heads * values if length > size else 0
        return size * (keys + values) + over_chunks

    def forward(self, x: Tensor, rope: Rope, retain: Retain) -> Tensor:  # (B, L, D)
        qk, v, gate = self.qkvg_proj(x).split(self.widths, dim=-1)
        qk = rotate(qk.unflatten(-1, (2 * self.num_heads, -1)), rope.cos, rope.sin)  # (B, L, 2N, K)
        q, k = qk.chunk(2, dim=2)
        y = retain(q, k, v.unflatten(-1, (self.num_heads, -1)))  # (B, L, N, E)
        return self.o_proj(F.silu(gate) * rms_norm(y).flatten(2))  # (B, L, D)


class RetNetBlock(nn.Module):
    """Retention over positions, then a feed-forward layer over channels; each reads a normed state and adds to it."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.retention_norm = Norm(config.hidden_size)
        self.retention = Retention(config)
        self.mlp_norm = Norm(config.hidden_size)
        self.mlp = SwiGLU(config.hidden_size, config.expansion, config.feed_forward)
        with torch.no_grad():  # so that the sum of all that is added stays near the size of the embedding
            for layer in (self.retention.o_proj, self.mlp.down_proj):
                layer.weight.mul_(1 / math.sqrt(2 * config.H_layers))

    def forward(self, x: Tensor, rope: Rope, retain: Retain) -> Tensor:  # (B, L, D)
        x = x + self.retention(self.retention_norm(x), rope, retain)
        return x + self.mlp(self.mlp_norm(x))


class RetentionLevel(nn.Module):
    """The stack of blocks and the norm at its end."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([RetNetBlock(config) for _ in range(config.H_layers)])
        self.norm = Norm(config.hidden_size)
        self.computes_again = config.gradient_checkpointing

    def forward(self, x: Tensor, context: "RetentionContext") -> Tensor:  # (B, L, D)
        again, (rope, mask) = self.computes_again and torch.is_grad_enabled(), context
        for layer in self.layers:
            x = checkpoint(layer, x, rope, mask.retain, use_reentrant=False) if again else layer(x, rope, mask.retain)
        answer: Tensor = self.norm(x)
        return answer


class RetNetState(NamedTuple):
    """All that is remembered of the rows read so far."""

    layers: tuple[Tensor, ...]  # of each block (B, N, K, E), float32
    lengths: Tensor  # (B,) positions read


class Answer(NamedTuple):
    """What the network says of every position, (B, L, D)."""

    z_H: Tensor


class RetentionContext(NamedTuple):
    """What all blocks share."""

    rope: Rope
    mask: "Decays | Kernels | _Reading"


class RetNetCore(RecursiveCore):
    """One pass through the blocks; to the engine, a recursion of one supervision step."""

    Latents = Answer
    levels = ()
    config: RetNetConfig
    log_decay: Tensor  # (N,)
    frequencies: Tensor  # (K/2,)

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        del self.rotary_emb  # its table ends at seq_len, and a text may go on
        if not config.tie_embeddings:
            with torch.no_grad():
                self.lm_head.weight.mul_(FIRST_LOGIT_STD)
        self.q_head.requires_grad_(False)  # one step leaves nothing to halt
        self.register_buffer("H_init", torch.zeros(config.hidden_size), persistent=False)  # there is no first answer
        self.retention_level = RetentionLevel(config)
        self.register_buffer("log_decay", log_decays(config.num_heads), persistent=False)
        self.key_size = config.hidden_size // config.num_heads
        powers = torch.arange(0, self.key_size, 2, dtype=torch.float32) / self.key_size
        self.register_buffer("frequencies", config.rope_theta**-powers, persistent=False)

    @property
    def has_mask(self) -> bool:
        return False  # retention forgets at the borders of documents

    def context(self, batch: Batch) -> Any:  # RetentionContext, where the others have those of attention
        rows, length = batch["inputs"].shape
        documents, device = batch.get("documents"), self.log_decay.device
        positions = batch.get("positions")
        rope = self._rope(torch.arange(length, device=device) if positions is None else positions)
        if has_kernels(device, self.dtype, self.key_size):
            return RetentionContext(rope, Kernels.of(documents))
        chunk_size = self.config.chunk_size
        return RetentionContext(
            rope, Decays.of(self.log_decay, length, documents, chunk_size=chunk_size, dtype=self.dtype)
        )

    def initial_latents(self, x: Tensor) -> Answer:
        return Answer(x)

    def recurse(self, z: Answer, x: Tensor, call: NetworkCalls) -> Answer:
        answer = call(self.retention_level, x)
        call.cycle_ended(answer)
        return Answer(answer)

    def calls_per_step(self) -> int:
        return 1

    def calls_in_last_cycle(self) -> int:
        return 1

    def read(self, ids: Tensor, new_lengths: Sequence[int], state: RetNetState) -> tuple[Tensor, RetNetState]:
        """Continue from a state with ids (B, L), of which `new_lengths` (1 to L) are real: answers (B, L, D), new state."""
        if min(new_lengths) == ids.shape[1]:  # as for every token after the prompts: nothing to send
            lengths = torch.full_like(state.lengths, ids.shape[1])
        else:
            lengths = torch.tensor(new_lengths, device=ids.device)
        positions = state.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        reading = _Reading(self.log_decay, state.layers, lengths, self.config.chunk_size)
        context = RetentionContext(self._rope(positions), reading)
        answer = self.retention_level(self.embed({"inputs": ids}), context)
        return answer, RetNetState(tuple(reading.after), state.lengths + lengths)

    def empty_state(self, rows: int) -> RetNetState:
        """The state before the first position."""
        shape = (rows, self.config.num_heads, self.key_size, self.config.value_expansion * self.key_size)
        device = self.log_decay.device
        empty = torch.zeros(shape, dtype=torch.float32, device=device)
        return RetNetState((empty,) * self.config.H_layers, torch.zeros(rows, dtype=torch.long, device=device))

    def _rope(self, positions: Tensor) -> Rope:
        """Rotary positions whose tables carry K^-1/4, so that queries times keys carry the usual K^-1/2."""
        angles = positions[..., None] * self.frequencies
        return Rope(angles.cos() * self.key_size**-0.25, angles.sin() * self.key_size**-0.25)


class _Reading:
    """The memories of all blocks, in turn: gives what the new positions see, and takes them in."""

    def __init__(self, log_decay: Tensor, before: Sequence[Tensor], lengths: Tensor, chunk_size: int) -> None:
        self.log_decay, self.before, self.lengths, self.chunk_size = log_decay, before, lengths, chunk_size
        self.after: list[Tensor] = []

    def retain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = self.before[len(self.after)]
        y, state = read_on(q, k, v, self.log_decay, state, self.lengths, self.chunk_size)
        self.after.append(state)
        return y


class RetNet(ActModel):
    """The model: trained like a recursion of one step, read like a recurrent network."""

    core_class = RetNetCore
    config_class = RetNetConfig
    inner: RetNetCore


class RetentionMemory:
    """What the decoder asks of a memory, for a RetNet: any number of positions in constant space."""

    def __init__(self, model: RetNet, rows: int) -> None:
        self.core = model.inner
        self.device = self.core.log_decay.device
        self.state = self.core.empty_state(rows)

    @property
    def bytes_per_row(self) -> int:
        return sum(layer[0].numel() * layer.element_size() for layer in self.state.layers)

    def read(self, ids: Tensor, new_lengths: Sequence[int], is_prompt: Tensor | None = None) -> Iterator[Tensor]:
        """Reads ids (B, L), padded on the right, and yields the one answer (B, L, D) there is."""
        assert is_prompt is None, "a prompt that sees itself both ways has no state"
        answer, self.state = self.core.read(ids, new_lengths, self.state)
        yield answer

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        kept = torch.tensor(rows, dtype=torch.long, device=self.device)
        self.state = RetNetState(tuple(layer[kept] for layer in self.state.layers), self.state.lengths[kept])

    def add(self, other: "RetentionMemory") -> None:
        """Put the rows of another memory behind those that are here."""
        layers = zip(self.state.layers, other.state.layers, strict=True)
        lengths = torch.cat((self.state.lengths, other.state.lengths))
        self.state = RetNetState(tuple(torch.cat(both) for both in layers), lengths)
