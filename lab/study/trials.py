"""What a study consists of: variants, the training runs it wants of them, and what it writes about the results."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engine.train.evaluate import Report

Row = dict[str, Any]  # of the results: a run, and what came of it


@dataclass(frozen=True)
class Trial:
    """One training run of a study; two that are equal are the same run."""

    variant: str
    seed: int
    budget: float  # floating point operations
    settings: tuple[str, ...] | None = ()  # words beside those of base and variant; None: not chosen yet

    @classmethod
    def of(cls, row: Row) -> "Trial":
        return cls(row["variant"], row["seed"], row["budget"], tuple(row.get("settings", ())))

    def __str__(self) -> str:
        words = [self.variant, f"seed {self.seed}", f"{self.budget / 1e12:g} TFLOP", *(self.settings or ())]
        return ", ".join(words)


class Study(ABC):
    """Named variants, each a list of words of the config, that are trained with the same base."""

    mark: ClassVar[str]  # of its section of the page
    title: ClassVar[str] = "Recursion on text"  # of a new page
    config_name: ClassVar[str] = "cfg_pretrain_instruct"  # whose options its words are
    base: Sequence[str]
    variants: Mapping[str, Sequence[str]]

    @abstractmethod
    def trials(self, rows: Sequence[Row]) -> list[Trial]:
        """All runs of the study; some are known only from the results of others."""

    def prepare(self) -> None:
        """Make what all runs read, if it is not there yet."""
        return

    def seed_words(self, seed: int) -> list[str]:
        """What a seed decides: the weights and the order of the data, and more where a study says so."""
        return [f"seed={seed}"]

    @abstractmethod
    def kept(self, report: Report) -> dict[str, Any]:
        """What the results keep of the metrics of a run."""

    @abstractmethod
    def headline(self, row: Row) -> str:
        """The numbers of a result, in a few words."""

    @abstractmethod
    def section(self, rows: Sequence[Row], page: Path) -> str:
        """The text of its section of the page; pictures are drawn beside the page."""

    def conclusion(self, rows: Sequence[Row]) -> str:
        """What is printed at the end; none for a study whose page has to be read."""
        return ""

    def words(self, trial: Trial) -> list[str]:
        """The config of a run."""
        return [*self.base, *self.variants[trial.variant], *(trial.settings or ()), *self.seed_words(trial.seed)]

    def check_variants(self, names: Sequence[str] | None) -> list[str]:
        """The names, or all there are."""
        unknown = sorted(set(names or ()) - self.variants.keys())
        if unknown:
            raise ValueError(f"Unknown variants: {', '.join(unknown)}. Known are: {', '.join(self.variants)}.")
        return list(names or self.variants)


def options_word(options: Sequence[dict[str, Any]]) -> str:
    """A word for the settings of all trials that differs where the options do, so that results of another recipe are not
    taken for these."""
    # The letter keeps Hydra from reading a number where all digits of the hash are decimal.
    return f"run_name=r{hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]}"
