"""Follows a model through its supervision steps: the answer to a few puzzles after each of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dataset.common import IGNORE_LABEL_ID, Batch
from dataset.puzzles.samples import Sample
from engine.runtime.devices import Runtime
from engine.tasks.rollouts import ONE_TRY, Effort
from models.losses.puzzles import ACTLossHead


@dataclass(frozen=True)
class Board:
    """What one picture shows; each field has an entry for every cell."""

    tokens: np.ndarray
    given: np.ndarray  # tokens of the question
    wrong: np.ndarray  # whether to mark the cell
    changed: np.ndarray  # whether the picture before shows another answer


@dataclass(frozen=True)
class Trace:
    """One puzzle and what the model made of it, step by step."""

    sample: Sample
    answers: np.ndarray  # (steps, seq_len) tokens
    halting: np.ndarray  # (steps,) probability, by the model, that its answer is right

    @cached_property
    def wrong(self) -> np.ndarray:
        """(steps, seq_len): which cells that count are not yet right."""
        labels = self.sample.labels
        return (labels != IGNORE_LABEL_ID) & (self.answers != labels)

    @property
    def num_wrong(self) -> list[int]:
        counts: list[int] = self.wrong.sum(axis=1).tolist()
        return counts

    @property
    def question(self) -> Board:
        return self._unmarked(self.sample.inputs)

    @property
    def solution(self) -> Board:
        labels = self.sample.labels
        return self._unmarked(np.where(labels == IGNORE_LABEL_ID, 0, labels))

    def _unmarked(self, tokens: np.ndarray) -> Board:
        nothing = np.zeros(len(tokens), dtype=bool)
        return Board(tokens, self.sample.inputs, wrong=nothing, changed=nothing)

    def answer(self, step: int, step_before: int) -> Board:
        """The answer after step `step`, counted from 1; what differs from `step_before`, if not 0, is marked."""
        answer = self.answers[step - 1]
        before = self.answers[step_before - 1] if step_before else answer
        return Board(answer, self.sample.inputs, self.wrong[step - 1], answer != before)

    def summary(self) -> str:
        counts = self.num_wrong
        if counts[-1]:
            ending = f"{counts[-1]} wrong"
        else:
            last_wrong = max((step for step, count in enumerate(counts, start=1) if count), default=0)
            ending = f"solved from step {last_wrong + 1} on"
        return f"puzzle {self.sample.number}: {ending}; wrong cells by step: {' '.join(map(str, counts))}"


def trace_samples(head: ACTLossHead, samples: list[Sample], runtime: Runtime) -> list[Trace]:
    """Run all supervision steps, as an evaluation does, and keep the answer of each."""
    answers, halting = zip(*follow(head, samples, runtime), strict=True)
    by_row = zip(samples, np.stack(answers, axis=1), np.stack(halting, axis=1), strict=True)
    return [Trace(sample, answer, probability) for sample, answer, probability in by_row]


@torch.no_grad()
def follow(
    head: ACTLossHead, samples: list[Sample], runtime: Runtime, effort: Effort = ONE_TRY
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The answers (rows, seq_len) and the halting probabilities (rows,) after each supervision step of an evaluation."""
    head.eval()
    head.model.inner.depth = effort.depth_of(head.model.config)
    batch = runtime.to_device(batch_of(samples))
    carry, has_ended = head.initial_carry(batch), False
    while not has_ended:
        carry, _, _, outputs, finished = head(return_keys=("preds", "q_halt_logits"), carry=carry, batch=batch)
        yield outputs["preds"].cpu().numpy(), outputs["q_halt_logits"].float().sigmoid().cpu().numpy()
        has_ended = bool(finished)


def batch_of(samples: list[Sample]) -> Batch:
    return {
        "inputs": torch.from_numpy(np.stack([sample.inputs for sample in samples]).astype(np.int32)),
        "labels": torch.from_numpy(np.stack([sample.labels for sample in samples]).astype(np.int32)),
        "puzzle_identifiers": torch.tensor([sample.identifier for sample in samples], dtype=torch.int32),
    }
