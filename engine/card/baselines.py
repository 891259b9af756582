"""What knows no input would score on the same held-out data: the numbers without which those of a model say little."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem

MAX_POSITIONS = 2_000_000  # of held-out data that are looked at; more would change little
FREQUENCIES, COMMONEST, COPIED = "label frequencies alone", "always the commonest", "the input copied"

Ids = NDArray[np.int64]
Scores = dict[str, dict[str, tuple[str, float]]]  # by set and metric: how the guess is made, and its value


@dataclass
class Counted:
    """What was counted in a held-out set."""

    labels: Counter[int] = field(default_factory=Counter)
    answers: Counter[bytes] = field(default_factory=Counter)
    num_copied: int = 0
    whole_copied: int = 0

    def add(self, inputs: Ids, labels: Ids) -> None:
        """One answer: the labels that are scored, and the inputs at their places."""
        values, counts = np.unique(labels, return_counts=True)
        self.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self.answers[labels.tobytes()] += 1
        same = inputs == labels
        self.num_copied += int(same.sum())
        self.whole_copied += bool(same.all())

    def scores(self) -> dict[str, tuple[str, float]]:
        """By metric how a guess without looking is made best, in words, and its value."""
        total, rows = self.labels.total(), self.answers.total()
        shares = np.array(list(self.labels.values())) / total
        entropy, commonest = float(-(shares * np.log(shares)).sum()), float(shares.max())
        whole = self.answers.most_common(1)[0][1] / rows
        token = max((commonest, COMMONEST), (self.num_copied / total, COPIED))[::-1]
        answer = max((whole, COMMONEST), (self.whole_copied / rows, COPIED))[::-1]
        loss = (FREQUENCIES, entropy)
        found = {"token_loss": loss, "lm_loss": loss, "loss": loss, "perplexity": (FREQUENCIES, math.exp(entropy))}
        return {**found, "token_accuracy": token, "accuracy": token, "exact_accuracy": answer}


def baselines(items: Iterable[LoaderItem]) -> Scores:
    """What a guess without looking would score on these items."""
    found: defaultdict[str, Counted] = defaultdict(Counted)
    seen = 0
    for name, batch, _ in items:
        if "labels" not in batch or seen > MAX_POSITIONS:
            break
        seen += batch["labels"].numel()
        for inputs, labels in _answers(batch):
            found[name].add(inputs, labels)
    return {name: counted.scores() for name, counted in found.items()}


def _answers(batch: Batch) -> Iterator[tuple[Ids, Ids]]:
    """The scored labels of each document, or of each row, with the inputs at their places."""
    inputs, labels = (batch[name].cpu().numpy().astype(np.int64) for name in ("inputs", "labels"))
    documents = batch["documents"].cpu().numpy() if "documents" in batch else np.zeros_like(labels)
    for row in range(len(labels)):
        scored = labels[row] != IGNORE_LABEL_ID
        for document in np.unique(documents[row][scored]):
            chosen = scored & (documents[row] == document)
            yield inputs[row][chosen], labels[row][chosen]
