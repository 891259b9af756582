"""Metrics and what a run says to train.log."""

import time
from collections.abc import Iterable

from engine.train.tracking.backend import TrackedRun

LOG_FILE = "train.log"
SHOWN = ["loss", "ce", "kd", "agreement", "accuracy", "lr", "grad_norm", "skipped_steps"]  # of a training step
SHOWN += ["freed_rows", "perf/tokens_per_second", "perf/matmul_share"]


class TextLog:
    """train.log, which a resumed run continues: what the run said, and a line for every `log_interval`th step, the last
    one, every skipped one, and every evaluation."""

    name = "text"
    failures: tuple[type[Exception], ...] = (OSError,)

    def start(self, run: TrackedRun) -> None:
        self._log_interval, self._last_step = run.log_interval, run.total_steps
        self._file = open(run.directory.path / LOG_FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        values = {name.removeprefix("train/"): value for name, value in metrics.items()}
        if "train/lr" not in metrics and "train/skipped_steps" not in metrics:
            self.note(f"evaluation at step {step}: {_shown(values, values)}")
        elif step % self._log_interval == 0 or step == self._last_step or "train/skipped_steps" in metrics:
            self.note(f"step {step}: {_shown(values, SHOWN)}")

    def note(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _shown(values: dict[str, float | int], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {values[name]:.5g}" for name in names if name in values)
