"""Reads one token of each row in shapes that never change, so that compiled code and CUDA graphs serve all replies.

Rows and positions are rounded up to a few sizes. What was compiled, recorded and allocated is kept with the model for
the next reply. B rows, D hidden, V vocabulary, N heads, H head size.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from engine.runtime.replay import Replayed
from models.act import ActModel
from models.attention import AttentionMask
from models.core import RecursiveCore
from models.kv_cache import KeyValueMemory, KeyValues, Places, check_can_decode
from models.layers import AttentionContext
from models.rotary import Rope

FEWEST_POSITIONS = 64
FREE_READERS = 4  # of a model, that wait for the next reply
MOST_GRAPHS = 64  # of all sizes and models of a process


class Size(NamedTuple):
    """What decides which code and memory a token takes."""

    rows: int
    capacity: int
    num_steps: int
    every_step: bool  # whether the answer of each supervision step is looked at, or that of the last alone


class Reading(NamedTuple):
    """What a supervision step says at the last position of each row."""

    answer: Tensor  # (B, D)
    logits: Tensor  # (B, V)


def readings(core: RecursiveCore, answers: Iterator[Tensor], every_step: bool) -> Iterator[Reading]:
    """After every supervision step, or after the last alone, from the answer latents (B, D) of all."""
    answer = None
    for answer in answers:
        if every_step:
            yield Reading(answer, core.lm_head(answer).float())
    if not every_step:
        assert answer is not None
        yield Reading(answer, core.lm_head(answer).float())


class TokenReader:
    """Takes the place of `KeyValueMemory.read` after the prompt; every token of every reply makes the same calls."""

    def __init__(self, model: ActModel, size: Size, addresses: list[int]) -> None:
        rows, capacity, num_steps, every_step = self.size = size
        self.addresses = addresses  # of the weights, which a recording holds on to
        self.user: Callable[[], object] = lambda: None
        self.core = model.inner
        self.memory = KeyValueMemory(model, rows, capacity, num_steps)
        self.steps = self.memory.steps  # of all rows, whether or not they are in use
        device = self.memory.device
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.places = Places(torch.arange(rows, device=device)[:, None], positions, None, capacity)
        self.depths = torch.zeros(rows, dtype=torch.long, device=device)
        self.token = Replayed(self._read, num_steps if every_step else 1, device)
        self.leaving = Replayed(self._sync, 1, device)

    def read(self, ids: Tensor) -> Iterator[Reading]:
        """Read one id of each row in use (B,); the others repeat an old one at a position of their own."""
        memory = self.memory
        self.ids[: len(ids)] = ids[:, None]
        self.places.positions.copy_(memory.ends.clamp_max(memory.capacity - 1))
        memory.ends += 1
        memory.lengths = [length + 1 for length in memory.lengths]
        memory.newest = self.places
        return (Reading(*(part[: len(ids)] for part in reading)) for reading in self.token)

    def sync_exited(self, depths: Tensor) -> None:
        """As that of the memory, of what `read` read."""
        self.depths.fill_(self.size.num_steps)
        self.depths[: len(depths)] = depths
        for _ in self.leaving:
            pass

    def _read(self) -> Iterator[Reading]:
        mask = self.memory.mask_before(self.places)
        answers = self.memory.answers(self.steps, self.ids, self.places, mask, compiled_network)
        yield from readings(self.core, (answer[:, 0] for answer in answers), self.size.every_step)

    def _sync(self) -> Iterator[None]:
        self.memory.sync_exited(self.depths)
        yield None


def compiled_network(level: nn.Module, state: Tensor, context: AttentionContext) -> Tensor:
    """One network call as compiled code: all tensors that it reads and writes are handed to it."""
    memory = context.memory
    assert isinstance(memory, KeyValues) and memory.places is not None and context.mask.bias is not None
    keys, values = memory.of_next_calls(level)
    answer: Tensor = _compiled()(
        level, state.flatten(), context.rope, context.mask.bias, memory.places.positions, keys, values
    )
    return answer


def network_at(
    level: nn.Module,
    state: Tensor,
    rope: Rope | None,
    bias: Tensor,
    positions: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
) -> Tensor:
    """A network call on one position of each row, which is all of `state` (B * D); it is added to keys and values."""
    memory = KeyValues(keys, values)
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    memory.expect(Places(rows, positions, None, keys[0].shape[2]))
    answer: Tensor = level(state.view(len(positions), 1, -1), AttentionContext(rope, AttentionMask(bias=bias), memory))
    return answer


@cache
def _compiled() -> Callable[..., Tensor]:
    import torch._dynamo.config as config  # takes a second, which only compiling is worth

    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    return torch.compile(network_at, dynamic=False, fullgraph=True)


_READERS: WeakKeyDictionary[ActModel, list[TokenReader]] = WeakKeyDictionary()


def token_reader(
    model: ActModel, rows: int, capacity: int, num_steps: int, every_step: bool, *, user: object
) -> TokenReader:
    """A reader for so many rows and positions or more, empty; it is the user's for as long as that one lives."""
    check_can_decode(model, capacity)
    size = Size(
        rounded_up(rows), min(rounded_up(capacity, FEWEST_POSITIONS), model.config.seq_len), num_steps, every_step
    )
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    kept = _READERS.setdefault(model, [])
    free = [reader for reader in kept if reader.user() is None]
    reader = next((reader for reader in free if (reader.size, reader.addresses) == (size, addresses)), None)
    if reader is None:
        for oldest in free[: max(0, len(free) + 1 - FREE_READERS)]:
            kept.remove(oldest)
        reader = TokenReader(model, size, addresses)
    else:
        kept.remove(reader)
        reader.memory.clear()
    kept.append(reader)
    reader.user = ref(user)
    return reader


def rounded_up(size: int, fewest: int = 1) -> int:
    """To a power of two."""
    return max(fewest, 1 << (size - 1).bit_length())
