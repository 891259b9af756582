"""What studies share that keep results by held-out set and by pass, and those of made-up facts, where a seed makes a world."""

from typing import Any

from engine.train.evaluate import Report
from lab.study.composition_page import validation
from lab.study.trials import Row, Study


class PassStudy(Study):
    """Variants whose answers are scored after every pass, on a validation set too."""

    def kept(self, report: Report) -> dict[str, Any]:
        """Exact accuracy and loss of every held-out set after every pass."""
        names = ("exact_accuracy", "token_loss")
        return {
            set_name: {name: round(value, 5) for name, value in metrics.items() if name.rpartition("/")[2] in names}
            for set_name, metrics in report.items()
        }

    def headline(self, row: Row) -> str:
        return f"validation {validation(row)[0]:.2f}"


class WorldStudy(PassStudy):
    """Variants that answer questions about the world of each seed."""

    def seed_words(self, seed: int) -> list[str]:
        """The weights and the order of the data, and the world itself."""
        return [f"seed={seed}", f"dataset.seed={seed}"]
