"""Rows that are generated in step, one token of each at a time; others join them, and each leaves when it has ended.

B rows, D hidden, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.generate.exits import MIN_STEPS, may_exit
from engine.generate.options import DecodeOptions, ExitRule
from engine.generate.sampling import choose, marked
from engine.generate.token_reader import Reading, TokenReader, readings
from engine.runtime.devices import to_device
from engine.runtime.transfer import to_host
from models.act import ActModel
from models.kv_cache import KeyValueMemory, RecomputeMemory
from models.layers import weights_cast_once
from models.retnet.model import RetentionMemory

Memory = KeyValueMemory | RecomputeMemory | RetentionMemory
Key = TypeVar("Key")


class Token(NamedTuple):
    """One generated token of a row."""

    row: int
    id: int
    logprob: float  # of the model itself, before temperature and filters
    depth: int  # supervision steps it took; of the first token of an answer those of its prompt
    top: tuple[tuple[int, float], ...]  # the likeliest ids with their probabilities, as many as were asked for


class Row:
    """A text that is continued, and how: by at most `room` tokens, or up to a stop id.

    `open_length` says how much of its prompt sees itself in both directions, for models that were trained so
    (arch.prefix_mask); default: all of it.
    """

    def __init__(
        self,
        number: int,
        model: ActModel,
        prompt: Sequence[int],
        options: DecodeOptions,
        room: int,
        stop_ids: Collection[int] = (),
        open_length: int | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("A prompt is empty: there is nothing to continue.")
        if room < 1:
            raise ValueError(f"max_new_tokens={room}: at least 1 token must be asked for.")
        assert not isinstance(options.depth, str), "calibrated_options() comes first"
        self.number, self.prompt, self.room, self.stop_ids = number, list(prompt), room, stop_ids
        self.open_length = len(self.prompt) if open_length is None else open_length
        self.num_steps, self.exit, self.num_top = (
            options.depth or model.config.halt_max_steps,
            options.exit,
            options.num_top,
        )
        if self.exit.kind != "none" and self.num_steps == 1:
            raise ValueError(
                f"--exit {self.exit.kind} needs more than 1 supervision step. Raise --depth, or give no rule."
            )
        self.sampling = replace(options.sampling, seed=0)  # which rows that differ in their noise may share
        self.noise = torch.Generator().manual_seed(options.sampling.seed)
        self.num_tokens = 0
        self.has_ended = False


@dataclass(frozen=True)
class Alike(Generic[Key]):
    """The rows of a batch that share something."""

    key: Key
    rows: list[int]
    places: Tensor | slice  # the same, to index with


class Batch:
    """The rows and what was read of them. After `read_prompts`, `choose` and `read` take turns.

    Rows may differ in depth, exit rule and sampling: all go as deep as the deepest, and each takes its own step's
    answer. With `forced` (B, T), of rows that stay together, the rows take these ids instead of choosing.
    """

    def __init__(
        self,
        model: ActModel,
        rows: Sequence[Row],
        memory: Memory,
        reader: TokenReader | None = None,
        forced: Tensor | None = None,
    ) -> None:
        self.model, self.core = model, model.inner
        self.core.depth = model.config.depth_at(1.0)
        self.rows, self.memory, self.reader, self.forced = list(rows), memory, reader, forced
        self.ids = torch.empty(0, dtype=torch.long, device=memory.device)  # (B,) chosen, and not read yet
        self.said: Tensor | None = None  # (B, V) ids so far, where a row has a penalty for them
        if forced is None and any(row.sampling.repetition_penalty != 1 for row in rows):
            self.said = to_device(marked([row.prompt for row in rows], model.config.vocab_size), memory.device)
        self._rows_changed()

    def _rows_changed(self) -> None:
        self.deepest = max((row.num_steps for row in self.rows), default=1)
        self.chosen_alike = self._alike(lambda row: row.sampling)
        self.leaving_alike = self._alike(lambda row: (row.exit, row.num_steps))
        self.is_deep_alike = all(row.exit.kind == "none" and row.num_steps == self.deepest for row in self.rows)
        if all(row.sampling.repetition_penalty == 1 for row in self.rows):
            self.said = None

    def _alike(self, key: Callable[[Row], Key]) -> list[Alike[Key]]:
        found: dict[Key, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(key(row), []).append(place)
        if len(found) == 1:
            return [Alike(key, rows, slice(None)) for key, rows in found.items()]
        return [Alike(key, rows, to_device(torch.tensor(rows), self.memory.device)) for key, rows in found.items()]

    @torch.inference_mode()
    def choose(self, logits: Tensor, depths: Tensor) -> list[Token]:
        """The next token of every row, by its logits (B, V) at the depth that it took (B,)."""
        if self.forced is not None:
            self.ids = self.forced[:, self.rows[0].num_tokens]
        else:
            self.ids = self._chosen(logits)
        if self.said is not None:
            self.said.scatter_(1, self.ids[:, None], True)
        logprobs = logits.log_softmax(-1)
        likeliest = logprobs.topk(min(max(row.num_top for row in self.rows), logits.shape[1]))
        chosen = logprobs.gather(1, self.ids[:, None])[:, 0]
        told = to_host(self.ids, chosen, depths, likeliest.indices, likeliest.values.exp())
        tokens = []
        for row, found, logprob, depth, ids, chances in zip(self.rows, *(part.tolist() for part in told), strict=True):
            tokens.append(
                Token(row.number, found, logprob, depth, tuple(zip(ids, chances, strict=True))[: row.num_top])
            )
            row.num_tokens += 1
            if row.num_tokens >= row.room or (self.forced is None and found in row.stop_ids):
                row.has_ended = True
        return tokens

    def _chosen(self, logits: Tensor) -> Tensor:
        ids = [
            choose(
                logits[some.places],
                some.key,
                None if self.said is None else self.said[some.places],
                [self.rows[row].noise for row in some.rows],
            )
            for some in self.chosen_alike
        ]
        return ids[0] if len(ids) == 1 else self._together(ids, self.chosen_alike)

    @staticmethod
    def _together(parts: Sequence[Tensor], alike: Sequence[Alike[Key]]) -> Tensor:
        """What was found of the rows of each kind (each (rows,)), in the order of the batch."""
        found = parts[0].new_empty(sum(map(len, parts)))
        for part, some in zip(parts, alike, strict=True):
            found[some.places] = part
        return found

    @torch.inference_mode()
    def drop_ended(self) -> None:
        """Rows that have ended leave; the last ones take their places, so that few must be copied."""
        has_ended = [row.has_ended for row in self.rows]  # once, for another thread may end a row
        if not any(has_ended):
            return
        size = has_ended.count(False)
        late = [place for place in range(size, len(has_ended)) if not has_ended[place]]
        kept = [late.pop() if has_ended[place] else place for place in range(size)]
        self.memory.select_rows(kept)
        self.rows = [self.rows[place] for place in kept]
        places = to_device(torch.tensor(kept, dtype=torch.long), self.ids.device)
        self.ids = self.ids[places]
        self.forced = None if self.forced is None else self.forced[places]
        self.said = None if self.said is None else self.said[places]
        self._rows_changed()

    @torch.inference_mode()
    def add(self, other: "Batch") -> None:
        """The rows of another batch, which has chosen, join this one."""
        assert not isinstance(self.memory, RecomputeMemory) and type(other.memory) is type(self.memory)
        self.memory.add(other.memory)  # type: ignore[arg-type]
        if self.said is not None or other.said is not None:
            self.said = torch.cat((self._marks(), other._marks()))
        self.rows, self.ids = self.rows + other.rows, torch.cat((self.ids, other.ids))
        self._rows_changed()

    def _marks(self) -> Tensor:
        shape = (len(self.rows), self.model.config.vocab_size)
        return torch.zeros(shape, dtype=torch.bool, device=self.memory.device) if self.said is None else self.said

    def read_prompts(self, chunk: int | None = None) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Read the prompts, at most `chunk` positions at a time; yields after each part, and after the last the logits
        (B, V) and the supervision steps (B,) that they took.

        Several rows are read at once, and so is a prompt that sees itself in both directions.
        """
        sees_ahead = self.model.config.prefix_mask
        longest = max(len(row.prompt) for row in self.rows)
        size = longest if chunk is None or sees_ahead or len(self.rows) > 1 else chunk
        for first in range(0, longest, size):
            parts = [row.prompt[first : first + size] for row in self.rows]
            is_last = first + size >= longest
            found = self._read_part(parts, is_last, is_whole=size == longest)
            yield found if is_last else None

    @torch.inference_mode()
    def _read_part(self, parts: Sequence[list[int]], is_last: bool, is_whole: bool) -> tuple[Tensor, Tensor] | None:
        device, lengths = self.memory.device, [len(part) for part in parts]
        ids, is_prompt = to_device(padded(parts), device), None
        if self.model.config.prefix_mask:
            opened = torch.tensor([row.open_length for row in self.rows])
            is_prompt = to_device(torch.arange(ids.shape[1]) < opened[:, None], device)
        with weights_cast_once(self.core, self.core.dtype):
            answers = islice(self.memory.read(ids, lengths, is_prompt), self.deepest)
            if not is_last:  # where the row leaves shows at its end, so that what stands before goes all the way
                for _ in answers:
                    pass
                return None
            rows, ends = torch.arange(len(lengths), device=device), to_device(torch.tensor(lengths) - 1, device)
            at_ends = (answer[rows, ends] for answer in answers)
            found = self._last_of(readings(self.core, at_ends, not self.is_deep_alike), self.memory, is_whole=is_whole)
            return found

    @torch.inference_mode()
    def read(self) -> tuple[Tensor, Tensor]:
        """Read the ids that were chosen: the logits (B, V) after them, and the supervision steps (B,) they took."""
        if self.reader is not None:
            return self._last_of(islice(self.reader.read(self.ids), self.deepest), self.reader)
        with weights_cast_once(self.core, self.core.dtype):
            answers = islice(self.memory.read(self.ids[:, None], [1] * len(self.rows)), self.deepest)
            at_ends = (answer[:, 0] for answer in answers)
            return self._last_of(readings(self.core, at_ends, not self.is_deep_alike), self.memory)

    def _last_of(
        self, readings: Iterator[Reading], memory: Memory | TokenReader, is_whole: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The logits of each row at the supervision step where it leaves, and the number of that step."""
        depths = torch.full((len(self.rows),), self.deepest, device=self.memory.device)
        if self.is_deep_alike:
            *_, reading = readings
            return reading.logits, depths
        gone: Tensor | None = None
        before = kept = torch.empty(0)
        for step, (answer, now) in enumerate(readings, start=1):
            kept = now if gone is None else torch.where(gone[:, None], kept, now)
            leaves = None if step == self.deepest else self._leaving(step, answer, now, before)
            if leaves is not None:
                depths = torch.where(leaves if gone is None else leaves & ~gone, step, depths)
                gone = leaves if gone is None else gone | leaves
                if gone.all():
                    break
            before = now
        if isinstance(memory, TokenReader):
            memory.sync_exited(depths)
        elif isinstance(memory, KeyValueMemory):
            memory.sync_exited(depths, whole=not is_whole)
        return kept, depths

    def _leaving(self, step: int, answer: Tensor, now: Tensor, before: Tensor) -> Tensor | None:
        """Which rows (B,) leave after this step, if any may."""
        if all(step < first_exit(*some.key) for some in self.leaving_alike):
            return None
        parts = []
        for some in self.leaving_alike:
            rule, num_steps = some.key
            if step >= num_steps or step < first_exit(rule, num_steps):
                parts.append(torch.full((len(some.rows),), step >= num_steps, device=now.device))
            else:
                earlier = before[some.places] if step > 1 else before
                q_halt = self.core.q_head(answer[some.places]).float()[:, 0]
                parts.append(may_exit(rule, now[some.places], earlier, q_halt))
        return parts[0] if len(parts) == 1 else self._together(parts, self.leaving_alike)


def first_exit(rule: ExitRule, num_steps: int) -> int:
    """After which step a row may leave at the earliest."""
    return num_steps if rule.kind == "none" else MIN_STEPS[rule.kind]


def padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """Ids (B, L) of texts of different lengths."""
    return pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
