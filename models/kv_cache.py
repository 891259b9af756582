"""The cache of keys and values that lets a text grow by one position at a time, for any recursion.

B rows, L new positions, T positions seen so far, N heads, H head size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.act import ActModel
from models.attention import AttentionMask, bias_of, build_mask
from models.calls import Network, plain_call
from models.layers import Attention, AttentionContext, CastedLinear


class Places(NamedTuple):
    """Where the new positions of a batch stand; rows may have different lengths."""

    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, L)
    start: int | None  # the first position where it is the same in every row
    seen: int  # positions that some row has filled by now


class KeyValues:
    """Keys and values of one supervision step: two tensors (B, N, capacity, H) of their own for each attention call."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values
        self.places: Places | None = None
        self.call = 0

    def expect(self, places: Places) -> None:
        """Start a pass over all attention calls of the step, for new positions at these places."""
        self.places, self.call = places, 0

    def of_next_calls(self, level: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of the attention calls of this network, which whoever asks makes in its place."""
        calls = slice(self.call, self.call + attention_layers(level))
        self.call = calls.stop
        return self.keys[calls], self.values[calls]

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store what the next attention call adds, (B, L, N, H); return all that it may look at, (B, T, N, H)."""
        at = self.places
        assert at is not None, "expect() comes first"
        keys, values = self.keys[self.call], self.values[self.call]
        self.call += 1
        if at.start is not None:  # narrow() is one call where an index of slices is three, and a token makes thousands
            for kept, added in ((keys, k), (values, v)):
                kept.narrow(2, at.start, added.shape[1]).copy_(added.transpose(1, 2))
        else:
            keys[at.rows, :, at.positions], values[at.rows, :, at.positions] = k, v
        return keys.narrow(2, 0, at.seen).transpose(1, 2), values.narrow(2, 0, at.seen).transpose(1, 2)


class KeyValueMemory:
    """What a model has read of each row: the keys and values of every attention call of every supervision step (K).

    It has room for as many rows as it was made for, and the first of them are in use.
    """

    def __init__(self, model: ActModel, rows: int, capacity: int, num_steps: int) -> None:
        check_can_decode(model, capacity)
        self.core = core = model.inner
        self.device = next(core.parameters()).device
        self.num_steps, self.capacity = num_steps, capacity
        self.lengths = [0] * rows
        self.ends = torch.zeros(rows, 1, dtype=torch.long, device=self.device)  # the lengths, where they are used
        self.newest: Places | None = None  # of the last read
        layer = next(layer for layer in core.modules() if isinstance(layer, Attention))
        shape = (num_steps, rows, layer.num_heads, capacity, layer.head_dim)
        self.keys, self.values = (  # each (K, rows, N, capacity, H)
            [torch.zeros(shape, dtype=core.dtype, device=self.device) for _ in range(attention_calls(model))]
            for _ in range(2)
        )
        self.steps = self.steps_of(rows)

    def steps_of(self, rows: int) -> list[KeyValues]:
        """The keys and values of each supervision step, of the first so many rows."""
        return [
            KeyValues([part[step, :rows] for part in self.keys], [part[step, :rows] for part in self.values])
            for step in range(self.num_steps)
        ]

    @property
    def bytes_per_token(self) -> int:
        """Of one row."""
        sizes = (tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))
        return sum(sizes) // (len(self.ends) * self.capacity)

    def read(self, ids: Tensor, new_lengths: Sequence[int], is_prompt: Tensor | None = None) -> Iterator[Tensor]:
        """Read ids (B, L), padded on the right, and yield the answer latent (B, L, D) after each supervision step.

        `new_lengths` says how many ids of each row are real. With `is_prompt` (B, L), into an empty memory only,
        prompts see themselves in both directions. A consumer that stops early must call `sync_exited`, for all rows.
        """
        num_new, ends = ids.shape[1], self.ends[: len(ids)]
        places = Places(
            rows=torch.arange(len(ids), device=self.device)[:, None],
            positions=ends + torch.arange(num_new, device=self.device),
            start=self.lengths[0] if len(set(self.lengths)) == 1 else None,
            seen=max(self.lengths) + num_new,
        )
        mask = self._mask(places, is_prompt)
        self.lengths = [old + new for old, new in zip(self.lengths, new_lengths, strict=True)]
        ends += 1 if num_new == 1 else torch.tensor(new_lengths, device=self.device)[:, None]
        yield from self.answers(self.steps, ids, places, mask, plain_call)

    def answers(
        self, steps: Sequence[KeyValues], ids: Tensor, places: Places, mask: AttentionMask, network: Network
    ) -> Iterator[Tensor]:
        """Read ids at these places: the answer latent (B, L, D) after each supervision step."""
        core, self.newest = self.core, places
        rope = None
        if core.config.pos_encodings == "rope":
            rope = core.rotary_emb(places.positions, ids.shape[1])
        for memory in steps:
            memory.expect(places)
        contexts = [AttentionContext(rope, mask, memory) for memory in steps]
        batch = {"inputs": ids, "positions": places.positions}
        for _, answers in core.unroll(batch, len(steps), contexts=contexts, network=network):
            yield answers[-1]

    def clear(self) -> None:
        """Forget all that was read; what was made for it stays where it is."""
        for tensor in (self.ends, *self.keys, *self.values):
            tensor.zero_()
        self._use([0] * len(self.ends))

    def _use(self, lengths: list[int]) -> None:
        if len(lengths) != len(self.lengths):
            self.steps = self.steps_of(len(lengths))
        self.lengths = lengths

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; only those whose place changes are copied."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            new, old = torch.tensor(moved, device=self.device).T
            seen = max(self.lengths[row] for _, row in moved)
            for part in (*self.keys, *self.values):
                part[:, new, :, :seen] = part[:, old, :, :seen]
            self.ends[new] = self.ends[old]
        self._use([self.lengths[row] for row in rows])

    def add(self, other: "KeyValueMemory") -> None:
        """Copy the rows of another memory behind those that are in use; there must be room for them."""
        first, end, seen = len(self.lengths), len(self.lengths) + len(other.lengths), max(other.lengths)
        assert end <= len(self.ends) and other.num_steps <= self.num_steps and seen <= self.capacity
        for part, added in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            part[: other.num_steps, first:end, :, :seen] = added[:, : end - first, :, :seen]
        self.ends[first:end] = other.ends[: end - first]
        self._use(self.lengths + other.lengths)

    def sync_exited(self, depths: Tensor, *, whole: bool = False) -> None:
        """Row i left after `depths[i]` supervision steps (B,): deeper steps get what was read last from that step.

        So a row has the same memory whether or not the rest of the batch went deeper. With `whole` they get all that
        the row has read, which is what a prompt wants that was read in several parts.
        """
        assert self.newest is not None, "read() comes first"
        rows, positions = self.newest.rows, self.newest.positions
        if whole:
            positions = torch.arange(self.newest.seen, device=self.device).expand(len(rows), -1)
        steps = torch.arange(self.num_steps, device=self.device)[:, None, None]
        source = torch.minimum(steps, depths[:, None] - 1)  # (K, B, 1)
        for part in (*self.keys, *self.values):
            part[steps, rows, :, positions] = part[source, rows, :, positions]

    def _mask(self, places: Places, is_prompt: Tensor | None) -> AttentionMask:
        """A position looks at itself and at everything before it in its row."""
        if is_prompt is not None:
            assert not any(self.lengths), "a prompt that sees itself in both directions is read into an empty memory"
            return build_mask(causal=True, documents=None, is_prompt=is_prompt, dtype=self.core.dtype)
        if places.start is not None and places.positions.shape[1] == 1:
            return AttentionMask()
        if places.start == 0:
            return AttentionMask(is_causal=True)
        return self.mask_before(places)

    def mask_before(self, places: Places) -> AttentionMask:
        """The same for rows of any lengths, as a table."""
        allowed = torch.arange(places.seen, device=self.device) <= places.positions[:, :, None]  # (B, L, T)
        return AttentionMask(bias=bias_of(allowed, self.core.dtype))


class RecomputeMemory:
    """The reference for `KeyValueMemory`: stores only the ids and recomputes every position at each read."""

    def __init__(self, model: ActModel, rows: int, capacity: int, num_steps: int) -> None:
        check_can_decode(model, capacity)
        self.core = model.inner
        self.num_steps = num_steps
        self.device = next(self.core.parameters()).device
        self.texts: list[Tensor] = [torch.empty(0, dtype=torch.long, device=self.device) for _ in range(rows)]
        self.prompt_lengths = [0] * rows

    def read(self, ids: Tensor, new_lengths: Sequence[int], is_prompt: Tensor | None = None) -> Iterator[Tensor]:
        """As `KeyValueMemory.read`."""
        core, old = self.core, [len(text) for text in self.texts]
        self.texts = [torch.cat((text, new[:n])) for text, new, n in zip(self.texts, ids, new_lengths, strict=True)]
        if is_prompt is not None:
            self.prompt_lengths = is_prompt.sum(1).tolist()
        inputs = nn.utils.rnn.pad_sequence(self.texts, batch_first=True)
        batch = {"inputs": inputs}
        if core.config.prefix_mask:
            order = torch.arange(inputs.shape[1], device=self.device)
            batch["is_prompt"] = order < torch.tensor(self.prompt_lengths, device=self.device)[:, None]
        rows = torch.arange(len(old), device=self.device)[:, None]
        new = torch.tensor(old, device=self.device)[:, None] + torch.arange(max(new_lengths), device=self.device)
        for _, answers in core.unroll(batch, self.num_steps, network=plain_call):
            yield answers[-1][rows, new.clamp_max(inputs.shape[1] - 1)]

    def select_rows(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[row] for row in rows]
        self.prompt_lengths = [self.prompt_lengths[row] for row in rows]


def attention_calls(model: ActModel) -> int:
    """How many attention calls one supervision step makes; nothing is computed."""
    core, calls = model.inner, 0

    def counted(level: nn.Module, state: Tensor, context: AttentionContext) -> Tensor:
        nonlocal calls
        calls += attention_layers(level)
        return state

    batch = {"inputs": torch.zeros(1, 1, dtype=torch.long, device=next(core.parameters()).device)}
    with torch.no_grad():
        list(core.unroll(batch, 1, contexts=[AttentionContext(None, AttentionMask())], network=counted))
    return calls


def attention_layers(level: nn.Module) -> int:
    return sum(isinstance(layer, Attention) for layer in level.modules())


def check_can_decode(model: ActModel, capacity: int) -> None:
    config = model.config
    if not config.causal:
        raise ValueError("Only a causal model (arch.causal=true) can continue a text: this one looks ahead.")
    if config.puzzle_emb_ndim:
        raise ValueError(f"puzzle_emb_ndim={config.puzzle_emb_ndim}: text models have no puzzle prefix; expected 0.")
    if capacity > config.seq_len:
        raise ValueError(f"{capacity} positions do not fit the window of {config.seq_len} that the model was made for.")


def cast_for_reading(model: ActModel) -> None:
    """Store all weights in the dtype that the model computes in, laid out for few positions at a time."""
    for layer in model.modules():
        if isinstance(layer, CastedLinear):
            layer.pack_for_reading(model.inner.dtype)
