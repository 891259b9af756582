"""The cache of keys and values that lets a text grow by one position at a time, for any recursion.

B rows, L new positions, T positions seen so far, N heads, H head size.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dataset.common import Batch
from models.act import ActModel
from models.attention import AttentionMask, build_mask
from models.core import plain_call
from models.layers import Attention, AttentionContext, CastedLinear, weights_cast_once


class Places(NamedTuple):
    """Where the new positions of a batch stand; rows may have different lengths."""

    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, L)
    start: int | None  # the first position where it is the same in every row
    seen: int  # positions that some row has filled by now

    @classmethod
    def after(cls, lengths: Sequence[int], num_new: int, device: torch.device) -> "Places":
        """`num_new` positions in each row, after the `lengths` that are there already."""
        first = torch.tensor(lengths, device=device)[:, None]
        return cls(
            rows=torch.arange(len(lengths), device=device)[:, None],
            positions=first + torch.arange(num_new, device=device),
            start=lengths[0] if len(set(lengths)) == 1 else None,
            seen=max(lengths) + num_new,
        )


class KeyValues:
    """Preallocated keys and values of all attention calls of one supervision step."""

    def __init__(self, calls: int, rows: int, capacity: int, like: Attention, dtype: torch.dtype, device: torch.device):
        shape = (calls, rows, like.num_heads, capacity, like.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.places: Places | None = None
        self.call = 0

    def expect(self, places: Places) -> None:
        """Start a pass over all attention calls of the step, for new positions at these places."""
        self.places, self.call = places, 0

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store what the next attention call adds, (B, L, N, H); return all that it may look at, (B, T, N, H)."""
        at = self.places
        assert at is not None, "expect() comes first"
        keys, values = self.keys[self.call], self.values[self.call]  # (B, N, capacity, H)
        self.call += 1
        if at.start is not None:
            place = slice(at.start, at.start + k.shape[1])
            keys[:, :, place], values[:, :, place] = k.transpose(1, 2), v.transpose(1, 2)
        else:
            keys[at.rows, :, at.positions], values[at.rows, :, at.positions] = k, v
        return keys[:, :, : at.seen].transpose(1, 2), values[:, :, : at.seen].transpose(1, 2)

    def copy_from(self, other: "KeyValues", rows: Tensor, positions: Tensor) -> None:
        """Copy keys and values at these positions (R, L) of rows (R, 1) from the shallower step `other`."""
        self.keys[:, rows, :, positions] = other.keys[:, rows, :, positions]
        self.values[:, rows, :, positions] = other.values[:, rows, :, positions]


class KeyValueMemory:
    """What a model has read of each row: one `KeyValues` per supervision step.

    With `compiled` single positions go through a compiled step that always looks at the whole capacity, masked: its
    shapes then never change, and it is compiled once per batch size.
    """

    def __init__(self, model: ActModel, rows: int, capacity: int, num_steps: int, *, compiled: bool = False) -> None:
        check_can_decode(model, capacity)
        self.core = core = model.inner
        self.compiled_step = torch.compile(partial(core.step, network=plain_call), dynamic=False) if compiled else None
        self.lengths = [0] * rows
        self.newest: Places | None = None  # of the last read
        self.capacity = capacity
        layers = [layer for layer in core.modules() if isinstance(layer, Attention)]
        self.device = next(core.parameters()).device
        calls = attention_calls(model)
        self.steps = [KeyValues(calls, rows, capacity, layers[0], core.dtype, self.device) for _ in range(num_steps)]

    @property
    def bytes_per_token(self) -> int:
        """Of one row."""
        sizes = (tensor.numel() * tensor.element_size() for step in self.steps for tensor in (step.keys, step.values))
        return sum(sizes) // (len(self.lengths) * self.capacity)

    def read(self, ids: Tensor, new_lengths: Sequence[int], is_prompt: Tensor | None = None) -> Iterator[Tensor]:
        """Read ids (B, L), padded on the right, and yield the answer latent (B, L, D) after each supervision step.

        `new_lengths` says how many ids of each row are real. With `is_prompt` (B, L), into an empty memory only,
        prompts see themselves in both directions. A consumer that stops early must call `sync_exited`, for all rows.
        """
        core, places = self.core, Places.after(self.lengths, ids.shape[1], self.device)
        self.newest, is_compiled = places, self.compiled_step is not None and ids.shape[1] == 1
        if is_compiled:
            places = places._replace(start=None, seen=self.capacity)
        context = AttentionContext(
            rope=core.rotary_emb(places.positions, ids.shape[1]) if core.config.pos_encodings == "rope" else None,
            mask=self._mask(places, is_prompt),
        )
        self.lengths = [old + new for old, new in zip(self.lengths, new_lengths, strict=True)]
        for memory in self.steps:
            memory.expect(places)
        contexts = [context._replace(memory=memory) for memory in self.steps]
        batch = {"inputs": ids, "positions": places.positions}
        if is_compiled:
            yield from self._compiled_answers(batch, contexts)
            return
        for _, answers in core.unroll(batch, len(self.steps), contexts=contexts, network=plain_call):
            yield answers[-1]

    def _compiled_answers(self, batch: Batch, contexts: Sequence[AttentionContext]) -> Iterator[Tensor]:
        """Those of `unroll`, whose whole steps are compiled."""
        core, step = self.core, self.compiled_step
        assert step is not None
        with weights_cast_once(core, core.dtype):
            x = core.embed(batch)
            z, injected = core.initial_latents(x), torch.zeros_like(x) if core.config.injection == "start" else x
            for context in contexts:
                z, answers = step(z, injected, context)
                yield answers[-1]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        kept = torch.tensor(rows, device=self.device)
        for step in self.steps:
            step.keys, step.values = step.keys[:, kept], step.values[:, kept]

    def sync_exited(self, depths: Sequence[int]) -> None:
        """Row i left after `depths[i]` supervision steps: deeper steps get what was read last from that step.

        So a row has the same memory whether or not the rest of the batch went deeper.
        """
        assert self.newest is not None, "read() comes first"
        for depth in sorted(set(depths)):
            rows = torch.tensor([row for row, own in enumerate(depths) if own == depth], device=self.device)
            for deeper in self.steps[depth:]:
                deeper.copy_from(self.steps[depth - 1], rows[:, None], self.newest.positions[rows])

    def _mask(self, places: Places, is_prompt: Tensor | None) -> AttentionMask:
        """A position looks at itself and at everything before it in its row."""
        if is_prompt is not None:
            assert not any(self.lengths), "a prompt that sees itself in both directions is read into an empty memory"
            return build_mask(causal=True, documents=None, is_prompt=is_prompt, dtype=self.core.dtype)
        num_new = places.positions.shape[1]
        if places.start is not None and num_new == 1:
            return AttentionMask()
        if places.start == 0:
            return AttentionMask(is_causal=True)
        order = torch.arange(places.seen, device=self.device)
        ahead = order > places.positions[:, :, None]  # (B, L, T)
        bias = torch.zeros(ahead.shape, dtype=self.core.dtype, device=self.device).masked_fill_(ahead, float("-inf"))
        return AttentionMask(bias=bias[:, None])


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


class CallCounter:
    """Stands in for a memory and counts the attention calls of one pass, whatever other threads do with the model."""

    def __init__(self) -> None:
        self.calls = 0

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return k, v


def attention_calls(model: ActModel) -> int:
    """How many attention calls one supervision step makes."""
    core, counter = model.inner, CallCounter()
    batch = {"inputs": torch.zeros(1, 1, dtype=torch.long, device=next(core.parameters()).device)}
    with torch.no_grad():
        contexts = [AttentionContext(None, AttentionMask(), counter)]
        list(core.unroll(batch, 1, contexts=contexts, network=plain_call))
    return counter.calls


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
