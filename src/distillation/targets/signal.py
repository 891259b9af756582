"""What a teacher says, in one form for every kind of teacher; it travels in the batch like any other column.

B rows, L positions, K ids that are told of a position, V vocabulary. Position t tells of token t + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from dataset.common import Batch

Kind = Literal["topk", "sampled", "dense"]
UNUSED = -1  # an id slot that tells nothing
# The log-probability that stands in such a slot: next to nothing, and finite with any temperature on either side.
NO_MASS = -80.0
PREFIX = "teacher_"


@dataclass(frozen=True)
class TeacherFacts:
    """What stays the same over a run, and what a cache must agree with."""

    vocab_size: int
    kind: Kind
    k: int  # ids told of a position: the likeliest (topk) or the drawn ones (sampled); vocab_size where dense
    temperatures: tuple[float, ...]  # those that `log_norms` covers, 1.0 always among them, ascending
    fingerprint: str  # of the weights, or of the address and the model's name

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"teacher signal {self.kind!r}: expected one of {', '.join(get_args(Kind))}.")
        if 1.0 not in self.temperatures or list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(f"temperatures={self.temperatures}: expected ascending numbers with 1.0 among them.")

    def check_temperature(self, wanted: float) -> None:
        """A distribution at another temperature cannot be made from a part of the one at 1."""
        if wanted not in self.temperatures:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(
                f"The teacher's signal holds temperatures {known}, but {wanted:g} is asked for. Set teacher_temperature "
                f"to one of them, or make the signal anew with it (cached: scripts/cache_teacher_logits.py)."
            )


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

    def columns(self) -> Batch:
        """As columns of a batch, whose first axis is the row: they stay with their rows wherever these go."""
        named = {
            "logprobs": self.logprobs,
            "log_norms": self.log_norms,
            "valid": self.valid,
            "ids": self.ids,
            "shares": self.shares,
        }
        return {PREFIX + name: value for name, value in named.items() if value is not None}

    @classmethod
    def of(cls, batch: Batch) -> "TeacherSignal":
        """The signal that rides in a batch."""
        return cls(
            logprobs=batch[PREFIX + "logprobs"],
            log_norms=batch[PREFIX + "log_norms"],
            valid=batch[PREFIX + "valid"],
            ids=batch.get(PREFIX + "ids"),
            shares=batch.get(PREFIX + "shares"),
        )

    def at(self, places: Tensor) -> "TeacherSignal":
        """The positions `places` (S,) of the flattened batch, as one row: (1, S, ...)."""
        return self._with_each(lambda value: value.flatten(0, 1)[places][None])

    def at_temperature(self, wanted: float, facts: TeacherFacts) -> "TeacherSignal":
        """With the log norm of this temperature alone."""
        facts.check_temperature(wanted)
        column = facts.temperatures.index(wanted)
        return replace(self, log_norms=self.log_norms[..., column : column + 1])

    def rows(self, numbers: Sequence[int]) -> "TeacherSignal":
        return self._with_each(lambda value: value[list(numbers)])

    def to(self, device: torch.device) -> "TeacherSignal":
        return self._with_each(lambda value: value.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "TeacherSignal":
        return TeacherSignal.of({name: change(value) for name, value in self.columns().items()})


class Teacher(Protocol):
    """Whatever can say what it thinks of a batch."""

    @property
    def facts(self) -> TeacherFacts: ...

    def signal(self, batch: Batch) -> TeacherSignal:
        """Of the rows of a batch (`inputs`, `positions`, `documents`, `row_id`), on the batch's device."""

    def close(self) -> None:
        """No more will be asked: finish what is being written, give back what is held."""


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
