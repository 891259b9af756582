"""What a teacher says, in one form for every kind of teacher.

B rows, L positions, K ids that are named at a position, V vocabulary. Position t is about token t + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dataset.common import Batch
from models.losses.distill import TeacherTargets

Kind = Literal["topk", "sampled", "dense"]


@dataclass(frozen=True)
class TeacherFacts:
    """What stays the same over a run, and what a cache must agree with."""

    vocab_size: int
    kind: Kind
    k: int  # ids named at a position: the likeliest (topk) or the drawn ones (sampled); vocab_size where dense
    temperatures: tuple[float, ...]  # those that `log_norms` has a column for, 1.0 always among them, ascending
    fingerprint: str  # of the weights, or of the address and the model's name

    def __post_init__(self) -> None:
        if self.kind == "dense":
            object.__setattr__(self, "k", self.vocab_size)
        if self.kind == "topk" and self.k > self.vocab_size:
            raise ValueError(f"teacher_topk={self.k}: expected at most {self.vocab_size}, or teacher_kind=dense.")

    def column(self, wanted: float) -> int:
        """Which of `log_norms` is of this temperature; another one's cannot be computed from a part of a distribution."""
        if wanted not in self.temperatures:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(
                f"The teacher's signal holds temperatures {known}, but {wanted:g} is asked for. Set teacher_temperature "
                "to one of them, or make the cache again with --temperature (scripts/cache_teacher_logits.py)."
            )
        return self.temperatures.index(wanted)


@dataclass(frozen=True)
class TeacherSignal:
    """The teacher's distribution over the next token at every position of a batch.

    `log_norms` (B, L, number of temperatures) holds log sum_j exp(logp_j / T) over the whole vocabulary, so that
    log p_T(i) = logp_i / T - log_norm_T; it is 0 at T = 1. `shares` (B, L, K), where ids are sampled, says how often
    each was drawn, as a part of all draws.
    """

    logprobs: Tensor  # (B, L, K) float32 at temperature 1, NO_MASS in unused slots; (B, L, V) where dense
    log_norms: Tensor
    valid: Tensor  # (B, L) bool; False at the last token of a document, in padding, and where nothing is known
    ids: Tensor | None = None  # (B, L, K) int32, UNUSED in slots without an id; None where dense
    shares: Tensor | None = None

    def columns(self) -> dict[str, Tensor]:
        """The tensors that are there, by name; the first axis of each is the row."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def targets(self, places: Tensor, column: int) -> TeacherTargets:
        """At the positions `places` (T,) of the flattened batch, with the log norm of one temperature."""
        at = {name: value[places] for name, value in self.flat().columns().items()}
        return TeacherTargets(log_norm=at.pop("log_norms")[:, column], **at)

    def put(self, places: Tensor | list[int], values: "TeacherSignal") -> None:
        """Overwrite what is said at some places of the first axis."""
        named = values.columns()
        for name, column in self.columns().items():
            column[places] = named[name]

    def flat(self) -> "TeacherSignal":
        """A view of all positions of the batch in one row."""
        return self._with_each(lambda value: value.flatten(0, 1))

    def rows(self, numbers: Sequence[int]) -> "TeacherSignal":
        return self._with_each(lambda value: value[list(numbers)])

    def to(self, device: torch.device) -> "TeacherSignal":
        return self._with_each(lambda value: value.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "TeacherSignal":
        return TeacherSignal(**{name: change(value) for name, value in self.columns().items()})


class Teacher(Protocol):
    """Says what it expects of the next token at every position of a batch."""

    @property
    def facts(self) -> TeacherFacts: ...

    def signal(self, batch: Batch) -> TeacherSignal:
        """Of the rows of a batch (`inputs`, `positions`, `documents`, `row_id`) on the host; the answer is where it was
        computed."""

    def close(self) -> None:
        """Finish what is being written and release what is held; `signal` is not called again."""


def predicted_places(documents: Tensor) -> Tensor:
    """Where (B, L) the next token belongs to the same document: the positions that a signal is valid at."""
    same = torch.zeros_like(documents, dtype=torch.bool)
    same[:, :-1] = (documents[:, 1:] == documents[:, :-1]) & (documents[:, :-1] >= 0)
    return same


def log_norms_of(logprobs: Tensor, temperatures: Sequence[float]) -> Tensor:
    """log sum exp(logp / T) over the last axis, which must be the whole vocabulary; one column a temperature."""
    columns = [
        torch.zeros(logprobs.shape[:-1], dtype=logprobs.dtype, device=logprobs.device)
        if temperature == 1.0
        else (logprobs / temperature).logsumexp(-1)
        for temperature in temperatures
    ]
    return torch.stack(columns, dim=-1)
