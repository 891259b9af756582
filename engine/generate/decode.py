"""Text from a causal model: the prompt is read once, then every token adds one position; ids in, ids out.

A row leaves the recursion by the exit rule, after its prompt as after any token. B rows, D hidden, V vocabulary.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.generate.exits import MIN_STEPS, may_exit
from engine.generate.options import DecodeOptions
from engine.generate.sampling import choose
from models.act import ActModel
from models.kv_cache import KeyValueMemory, RecomputeMemory
from models.layers import weights_cast_once
from models.retnet.model import RetentionMemory, RetNet


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
        self.forced = forced
        self.room = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if forced is not None:
            self.room = [len(ids) for ids in forced]
        if min(self.room) < 1:
            raise ValueError(f"max_new_tokens={min(self.room)}: at least 1 token must be asked for.")
        capacity = max(len(prompt) + room - 1 for prompt, room in zip(self.prompts, self.room, strict=True))
        assert not isinstance(options.depth, str), "calibrated_options() comes first"
        self.num_steps = options.depth or model.config.halt_max_steps
        if options.exit.kind != "none" and self.num_steps == 1:
            raise ValueError(
                f"--exit {options.exit.kind} needs more than 1 supervision step. Raise --depth, or give no rule."
            )
        self.memory: KeyValueMemory | RecomputeMemory | RetentionMemory
        if options.mode == "recompute":
            self.memory = RecomputeMemory(model, len(prompts), capacity, self.num_steps)
        elif isinstance(model, RetNet):
            if self.num_steps != 1:
                raise ValueError(f"depth={self.num_steps}: a RetNet takes 1 supervision step. Leave depth out.")
            self.memory = RetentionMemory(model, len(prompts))
        else:
            self.memory = KeyValueMemory(model, len(prompts), capacity, self.num_steps, compiled=options.compile)
        self.noise = [torch.Generator().manual_seed(options.sampling.seed) for _ in prompts]
        self.stopped: set[int] = set()

    def stop(self, row: int) -> None:
        """End this row after the tokens it has."""
        self.stopped.add(row)

    def __iter__(self) -> Iterator[list[Token]]:
        rows = list(range(len(self.prompts)))
        generated: list[list[int]] = [[] for _ in rows]
        logits, depths = self._read_prompts()
        while True:
            tokens = self._chosen(rows, generated, logits, depths)
            for token in tokens:
                generated[token.row].append(token.id)
            yield tokens
            unfinished = [at for at, row in enumerate(rows) if not self._has_ended(row, generated[row])]
            if not unfinished:
                return
            if len(unfinished) < len(rows):
                rows = [rows[at] for at in unfinished]
                self.memory.select_rows(unfinished)
            logits, depths = self._read([generated[row][-1:] for row in rows])

    def _has_ended(self, row: int, generated: list[int]) -> bool:
        at_end = self.forced is None and generated[-1] in self.stop_ids
        return row in self.stopped or at_end or len(generated) >= self.room[row]

    def _chosen(self, rows: list[int], generated: list[list[int]], logits: Tensor, depths: list[int]) -> list[Token]:
        if self.forced is not None:
            ids = torch.tensor([self.forced[row][len(generated[row])] for row in rows], device=logits.device)
        else:
            texts = [torch.tensor(self.prompts[row] + generated[row], device=logits.device) for row in rows]
            seen = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
            ids = choose(logits, self.options.sampling, seen, [self.noise[row] for row in rows])
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        likeliest = logprobs.topk(min(self.options.num_top, logits.shape[1]))
        tops = [
            tuple(zip(top_ids, values, strict=True))
            for top_ids, values in zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
        ]
        return [Token(*fields) for fields in zip(rows, ids.tolist(), chosen, depths, tops, strict=True)]

    def _read_prompts(self) -> tuple[Tensor, list[int]]:
        is_prompt = None
        if self.model.config.prefix_mask:
            opened = torch.tensor(self.open_lengths)[:, None]
            is_prompt = torch.arange(max(len(prompt) for prompt in self.prompts)) < opened
        return self._read(self.prompts, is_prompt)

    @torch.inference_mode()
    def _read(self, texts: Sequence[Sequence[int]], is_prompt: Tensor | None = None) -> tuple[Tensor, list[int]]:
        """Logits after each row read these ids, and the supervision steps that it took for them."""
        core, device = self.core, self.memory.device
        lengths = [len(text) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(device)
        ends = torch.tensor(lengths, device=device) - 1
        depths = [self.num_steps] * len(texts)
        with weights_cast_once(core, core.dtype):
            answers = self.memory.read(ids, lengths, None if is_prompt is None else is_prompt.to(device))
            at_end = (answer[torch.arange(len(lengths), device=device), ends] for answer in answers)  # each (B, D)
            if self.options.exit.kind == "none":
                return core.lm_head(_last(at_end)).float(), depths
            logits = self._read_with_exit(at_end, depths)
            assert isinstance(self.memory, KeyValueMemory)
            self.memory.sync_exited(depths)
            return logits, depths

    def _read_with_exit(self, answers: Iterator[Tensor], depths: list[int]) -> Tensor:
        """Logits of each row at the step where it left; that step is written to `depths`."""
        rule = self.options.exit
        assert rule.kind != "none"
        before = kept = torch.empty(0)
        for step, answer in enumerate(answers, start=1):
            now = self.core.lm_head(answer).float()
            gone = torch.tensor([depth < step for depth in depths], device=now.device)
            kept = torch.where(gone[:, None], kept, now) if step > 1 else now
            if MIN_STEPS[rule.kind] <= step < self.num_steps:
                leaves = may_exit(rule, now, before, self.core.q_head(answer).float()[:, 0])
                for row in (leaves & ~gone).nonzero()[:, 0].tolist():
                    depths[row] = step
                if max(depths) <= step:
                    break
            before = now
        return kept


def _last(answers: Iterator[Tensor]) -> Tensor:
    """The final one, holding none of those before."""
    return deque(answers, maxlen=1)[0]
