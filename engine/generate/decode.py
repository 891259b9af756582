"""Text from a causal model: the prompt is read once, then every token adds one position; ids in, ids out.

A row leaves the recursion by the exit rule, after its prompt as after any token. B rows, D hidden, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.generate.exits import MIN_STEPS, may_exit
from engine.generate.options import DecodeOptions
from engine.generate.sampling import choose, marked
from engine.generate.token_reader import Reading, TokenReader, readings, token_reader
from engine.runtime.devices import to_device
from engine.runtime.transfer import to_host
from models.act import ActModel
from models.kv_cache import KeyValueMemory, RecomputeMemory
from models.layers import weights_cast_once
from models.retnet.model import RetentionMemory, RetNet

Memory = KeyValueMemory | RecomputeMemory | RetentionMemory


class Token(NamedTuple):
    """One generated token of a row."""

    row: int
    id: int
    logprob: float  # of the model itself, before temperature and filters
    depth: int  # supervision steps it took; of the first token of an answer those of its prompt
    top: tuple[tuple[int, float], ...]  # the likeliest ids with their probabilities, as many as were asked for


class Decoding:
    """Generates one token per row and iteration, until every row has ended: by a stop id, its length, or `stop`.

    `max_new_tokens` holds for all rows, or for each. `open_lengths` says how much of each prompt sees itself in both
    directions, for models that were trained so (arch.prefix_mask); default: all of it. With `forced` the rows take
    these ids instead of choosing, and the tokens report how likely they were.
    """

    def __init__(
        self,
        model: ActModel,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        *,
        max_new_tokens: int | Sequence[int] = 1,
        stop_ids: Collection[int] = (),
        open_lengths: Sequence[int] | None = None,
        forced: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if not prompts or not all(prompts):
            raise ValueError("A prompt is empty: there is nothing to continue.")
        self.model, self.core, self.options, self.stop_ids = model, model.inner, options, stop_ids
        self.core.depth = model.config.depth_at(1.0)
        self.prompts = [list(prompt) for prompt in prompts]
        self.open_lengths = list(open_lengths) if open_lengths is not None else [len(prompt) for prompt in prompts]
        self.room = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if forced is not None:
            self.room = [len(ids) for ids in forced]
        if min(self.room) < 1:
            raise ValueError(f"max_new_tokens={min(self.room)}: at least 1 token must be asked for.")
        capacity = max(len(prompt) + room - 1 for prompt, room in zip(self.prompts, self.room, strict=True))
        assert not isinstance(options.depth, str), "calibrated_options() comes first"
        self.num_steps = options.depth or model.config.halt_max_steps
        self.may_leave = options.exit.kind != "none"
        if self.may_leave and self.num_steps == 1:
            raise ValueError(
                f"--exit {options.exit.kind} needs more than 1 supervision step. Raise --depth, or give no rule."
            )
        self.memory: Memory
        self.reader: TokenReader | None = None
        if options.mode == "recompute":
            self.memory = RecomputeMemory(model, len(prompts), capacity, self.num_steps)
        elif isinstance(model, RetNet):
            if self.num_steps != 1:
                raise ValueError(f"depth={self.num_steps}: a RetNet takes 1 supervision step. Leave depth out.")
            self.memory = RetentionMemory(model, len(prompts))
        elif options.compile:
            self.reader = token_reader(model, len(prompts), capacity, self.num_steps, self.may_leave, user=self)
            self.memory = self.reader.memory
        else:
            self.memory = KeyValueMemory(model, len(prompts), capacity, self.num_steps)
        self.stopped: set[int] = set()
        self._fill_batch(forced)

    def _fill_batch(self, forced: Sequence[Sequence[int]] | None) -> None:
        """What every row of the batch has; a reader with more rows than there are prompts repeats the last prompt."""
        device, num_rows = self.memory.device, len(self.prompts)
        size = num_rows if self.reader is None else self.reader.size.rows
        of_rows = [min(at, num_rows - 1) for at in range(size)]
        self.rows: list[int | None] = [at if at < num_rows else None for at in range(size)]  # None: nobody reads it
        self.is_idle = to_device(torch.tensor([row is None for row in self.rows]), device)
        self.texts = [self.prompts[row] for row in of_rows]
        self.noise = [torch.Generator().manual_seed(self.options.sampling.seed) for _ in of_rows]
        self.forced = self.said = None
        if forced is not None:
            self.forced = to_device(padded([forced[row] for row in of_rows]), device)
        elif self.options.sampling.repetition_penalty != 1:
            self.said = to_device(marked(self.texts, self.model.config.vocab_size), device)

    def stop(self, row: int) -> None:
        """End this row after the tokens it has."""
        self.stopped.add(row)

    def __iter__(self) -> Iterator[list[Token]]:
        logits, depths = self._read_prompts()
        for number in count(1):
            ids, tokens = self._choose(logits, depths, number)
            yield tokens
            ended = {token.row for token in tokens if self._has_ended(token, number)}
            if len(ended) == len(tokens):
                return
            logits, depths = self._read_tokens(self._without(ended, ids) if ended else ids)

    def _has_ended(self, token: Token, number: int) -> bool:
        at_end = self.forced is None and token.id in self.stop_ids
        return token.row in self.stopped or at_end or number >= self.room[token.row]

    @torch.inference_mode()
    def _choose(self, logits: Tensor, depths: Tensor, number: int) -> tuple[Tensor, list[Token]]:
        """Token number `number`, from 1, of every row: the ids (B,) where the model is, and what is told of them."""
        if self.forced is not None:
            ids = self.forced[:, number - 1]
        else:
            ids = choose(logits, self.options.sampling, self.said, self.noise)
        if self.said is not None:
            self.said.scatter_(1, ids[:, None], True)
        logprobs = logits.log_softmax(-1)
        likeliest = logprobs.topk(min(self.options.num_top, logits.shape[1]))
        chosen = logprobs.gather(1, ids[:, None])[:, 0]
        told = to_host(ids, chosen, depths, likeliest.indices, likeliest.values.exp())
        return ids, [
            Token(row, found, logprob, depth, tuple(zip(top_ids, chances, strict=True)))
            for row, found, logprob, depth, top_ids, chances in zip(
                self.rows, *(part.tolist() for part in told), strict=True
            )
            if row is not None
        ]

    @torch.inference_mode()
    def _without(self, ended: Collection[int], ids: Tensor) -> Tensor:
        """The ids of the rows that go on: those that ended leave the batch, or are idle in one that keeps its shape."""
        left = [at for at, row in enumerate(self.rows) if row in ended]
        if self.reader is not None:
            for at in left:
                self.rows[at], self.is_idle[at] = None, True
            return ids
        kept = [at for at in range(len(self.rows)) if at not in left]
        self.memory.select_rows(kept)
        self.rows, self.noise = [self.rows[at] for at in kept], [self.noise[at] for at in kept]
        places = to_device(torch.tensor(kept), ids.device)
        self.is_idle = self.is_idle[places]
        self.forced = None if self.forced is None else self.forced[places]
        self.said = None if self.said is None else self.said[places]
        return ids[places]

    @torch.inference_mode()
    def _read_prompts(self) -> tuple[Tensor, Tensor]:
        """As `_read_tokens`, of the prompts."""
        device, lengths = self.memory.device, [len(text) for text in self.texts]
        ids, is_prompt = to_device(padded(self.texts), device), None
        if self.model.config.prefix_mask:
            opened = torch.tensor(self.open_lengths + self.open_lengths[-1:] * (len(lengths) - len(self.open_lengths)))
            is_prompt = to_device(torch.arange(ids.shape[1]) < opened[:, None], device)
        rows, ends = torch.arange(len(lengths), device=device), to_device(torch.tensor(lengths) - 1, device)
        with weights_cast_once(self.core, self.core.dtype):
            answers = (answer[rows, ends] for answer in self.memory.read(ids, lengths, is_prompt))
            return self._last_of(readings(self.core, answers, self.may_leave), self.memory)

    @torch.inference_mode()
    def _read_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits after each row (B,) read this id, and the supervision steps that it took for it."""
        if self.reader is not None:
            return self._last_of(self.reader.read(ids), self.reader)
        with weights_cast_once(self.core, self.core.dtype):
            answers = (answer[:, 0] for answer in self.memory.read(ids[:, None], [1] * len(ids)))
            return self._last_of(readings(self.core, answers, self.may_leave), self.memory)

    def _last_of(self, readings: Iterator[Reading], memory: Memory | TokenReader) -> tuple[Tensor, Tensor]:
        """The logits of each row at the supervision step where it leaves, and the number of that step."""
        depths = torch.full((len(self.rows),), self.num_steps, device=self.memory.device)
        if not self.may_leave:
            (reading,) = readings
            return reading.logits, depths
        assert isinstance(memory, KeyValueMemory | TokenReader)
        rule, gone = self.options.exit, self.is_idle
        assert rule.kind != "none"
        before = kept = torch.empty(0)
        for step, (answer, now) in enumerate(readings, start=1):
            kept = now if step == 1 else torch.where(gone[:, None], kept, now)
            if MIN_STEPS[rule.kind] <= step < self.num_steps:
                leaves = may_exit(rule, now, before, self.core.q_head(answer).float()[:, 0])
                depths = torch.where(leaves & ~gone, step, depths)
                gone = gone | leaves
                if gone.all():
                    break
            before = now
        memory.sync_exited(depths)
        return kept, depths


def padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """Ids (B, L) of texts of different lengths."""
    return pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
