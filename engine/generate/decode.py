"""Text from a causal model: a prompt is read once, then every token adds one position; ids in, ids out."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from engine.generate.sampling import Sampling, choose
from models.act import ActModel
from models.kv_cache import Memory, Rereading
from models.layers import weights_cast_once
from models.retnet.model import RetentionMemory, RetNet

Mode = Literal["exact", "last_step", "recompute"]
ExitKind = Literal["kl", "margin", "head"]
FEWEST_STEPS = 2  # a token takes before it may leave: an exit compares two steps, or trusts a head that saw two


class Token(NamedTuple):
    """One token that a row says."""

    row: int
    id: int
    logprob: float  # of the model itself, before temperature and filters
    depth: int  # supervision steps it took
    top: tuple[tuple[int, float], ...]  # the likeliest ids with their probabilities, as many as were asked for


@dataclass(frozen=True)
class ExitRule:
    """When a token may leave the recursion early; each token by itself, whatever else is in the batch.

    `kl`: the step changed the distribution by less than the threshold. `margin`: the likeliest token leads the second
    by at least it. `head`: the halting head says with at least this probability that one more step brings nothing.
    """

    kind: ExitKind
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(ExitKind):
            raise ValueError(f"exit rule {self.kind!r}: expected one of {', '.join(get_args(ExitKind))}.")
        if not self.threshold >= 0:
            raise ValueError(f"exit threshold {self.threshold}: expected a number from 0 up.")

    def allows(self, logits: Tensor, before: Tensor, q_halt: Tensor) -> Tensor:
        """Which rows (B,) may leave after a step with these logits (B, V), with `before` those of the step before."""
        return self.passes(evidence(self.kind, logits, before, q_halt))

    def passes(self, found: Tensor) -> Tensor:
        return found < self.threshold if self.kind == "kl" else found >= self.threshold


def evidence(kind: ExitKind, logits: Tensor, before: Tensor, q_halt: Tensor) -> Tensor:
    """What a rule looks at, for each row: divergence from the step before, lead of the likeliest token, or halting."""
    if kind == "head":
        return torch.sigmoid(q_halt)
    if kind == "margin":
        first, second = logits.softmax(-1).topk(2).values.unbind(-1)
        return first - second
    now, old = logits.log_softmax(-1), before.log_softmax(-1)
    return (now.exp() * (now - old)).sum(-1)


@dataclass(frozen=True)
class DecodeOptions:
    max_new_tokens: int | Sequence[int]  # for all rows, or for each
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    mode: Mode = "exact"
    depth: int | None = None  # supervision steps of every token; None: as many as the model was trained for
    exit: ExitRule | None = None
    num_top: int = 0
    compile: bool = False  # pays on CUDA, where one position is all launches and hardly any work; takes a minute first


class Decoding:
    """Says one token a row and iteration, until every row has ended: by a stop id, its length, or `stop`.

    With `forced` the rows say these ids instead of their own choice, and the tokens tell how likely they were.
    `open_lengths` says how much of each prompt sees itself both ways, for models that were trained so
    (arch.prefix_mask); all of it unless said otherwise.
    """

    def __init__(
        self,
        model: ActModel,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        *,
        open_lengths: Sequence[int] | None = None,
        forced: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if not prompts or not all(prompts):
            raise ValueError("A prompt is empty: there is nothing to go on with.")
        if options.depth is not None and options.depth < 1:
            raise ValueError(f"depth={options.depth}: a token needs at least 1 supervision step.")
        self.model, self.core, self.options = model, model.inner, options
        self.core.depth = model.config.depth_at(1.0)
        self.prompts = [list(prompt) for prompt in prompts]
        self.open_lengths = list(open_lengths) if open_lengths is not None else [len(prompt) for prompt in prompts]
        self.forced = forced
        most = options.max_new_tokens
        self.room = [most] * len(prompts) if isinstance(most, int) else list(most)
        if forced is not None:
            self.room = [len(said) for said in forced]
        if min(self.room) < 1:
            raise ValueError(f"max_new_tokens={min(self.room)}: at least 1 token must be asked for.")
        capacity = max(len(prompt) + room - 1 for prompt, room in zip(self.prompts, self.room, strict=True))
        self.num_steps = options.depth or model.config.halt_max_steps
        if options.exit is not None and (options.mode == "recompute" or self.num_steps == 1):
            reason = "has one supervision step" if self.num_steps == 1 else "runs every token to full depth"
            raise ValueError(
                f"Nothing can leave early: this {reason}. Use mode=exact with several steps, or no exit rule."
            )
        self.memory: Memory | Rereading | RetentionMemory
        if options.mode == "recompute":
            self.memory = Rereading(model, len(prompts), capacity, self.num_steps)
        elif isinstance(model, RetNet):
            if self.num_steps != 1:
                raise ValueError(
                    f"depth={self.num_steps}: a RetNet has no supervision steps to repeat; leave depth out."
                )
            self.memory = RetentionMemory(model, len(prompts))
        else:
            self.memory = Memory(
                model,
                len(prompts),
                capacity,
                self.num_steps,
                last_step=options.mode == "last_step",
                compiled=options.compile,
            )
        self.noise = [torch.Generator().manual_seed(options.sampling.seed) for _ in prompts]
        self.stopped: set[int] = set()

    def stop(self, row: int) -> None:
        """This row has said enough."""
        self.stopped.add(row)

    def __iter__(self) -> Iterator[list[Token]]:
        rows = list(range(len(self.prompts)))
        said: list[list[int]] = [[] for _ in rows]
        logits, depths = self._read_prompts()
        while True:
            tokens = self._chosen(rows, said, logits, depths)
            for token in tokens:
                said[token.row].append(token.id)
            yield tokens
            going_on = [at for at, row in enumerate(rows) if not self._has_ended(row, said[row])]
            if not going_on:
                return
            if len(going_on) < len(rows):
                rows = [rows[at] for at in going_on]
                self.memory.keep(going_on)
            logits, depths = self._read_tokens([said[row][-1] for row in rows])

    def _has_ended(self, row: int, said: list[int]) -> bool:
        at_end = self.forced is None and said[-1] in self.options.stop_ids
        return row in self.stopped or at_end or len(said) >= self.room[row]

    def _chosen(self, rows: list[int], said: list[list[int]], logits: Tensor, depths: list[int]) -> list[Token]:
        if self.forced is not None:
            ids = torch.tensor([self.forced[row][len(said[row])] for row in rows], device=logits.device)
        else:
            texts = [torch.tensor(self.prompts[row] + said[row], device=logits.device) for row in rows]
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

    @torch.inference_mode()
    def _read_prompts(self) -> tuple[Tensor, list[int]]:
        device = self.memory.device
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p, device=device) for p in self.prompts], batch_first=True)
        lengths = [len(prompt) for prompt in self.prompts]
        is_prompt = None
        if self.model.config.prefix_mask:
            opened = torch.tensor(self.open_lengths, device=device)[:, None]
            is_prompt = torch.arange(ids.shape[1], device=device) < opened
        with weights_cast_once(self.core, self.core.dtype):
            answer = _last(self.memory.read(ids, lengths, is_prompt))
            last = answer[torch.arange(len(lengths)), torch.tensor(lengths) - 1]
            return self.core.lm_head(last).float(), [self.num_steps] * len(lengths)

    @torch.inference_mode()
    def _read_tokens(self, ids: list[int]) -> tuple[Tensor, list[int]]:
        """Logits after one more token a row, and the supervision steps that each took."""
        rule, core = self.options.exit, self.core
        depths = [self.num_steps] * len(ids)
        with weights_cast_once(core, core.dtype):
            answers = self.memory.read(torch.tensor(ids, device=self.memory.device)[:, None], [1] * len(ids))
            if rule is None:
                return core.lm_head(_last(answers)[:, 0]).float(), depths
            logits = self._read_with_exit(answers, rule, depths)
            assert isinstance(self.memory, Memory)
            self.memory.settle(depths)
            return logits, depths

    def _read_with_exit(self, answers: Iterator[Tensor], rule: ExitRule, depths: list[int]) -> Tensor:
        """Logits of each row at the step where it left; `depths` is told that step."""
        before = kept = torch.empty(0)
        for step, answer in enumerate(answers, start=1):
            now = self.core.lm_head(answer[:, 0]).float()
            gone = torch.tensor([depth < step for depth in depths], device=now.device)
            kept = torch.where(gone[:, None], kept, now) if step > 1 else now
            if FEWEST_STEPS <= step < self.num_steps:
                leaves = rule.allows(now, before, self.core.q_head(answer[:, 0]).float()[:, 0])
                for row in (leaves & ~gone).nonzero()[:, 0].tolist():
                    depths[row] = step
                if max(depths) <= step:
                    break
            before = now
        return kept


def _last(answers: Iterator[Tensor]) -> Tensor:
    """The final one, holding none of those before."""
    return deque(answers, maxlen=1)[0]
