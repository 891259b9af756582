"""train.log: what a run said and measured, as lines of text."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from engine.train.tracking import Tracker

LOG_FILE = "train.log"
SHOWN = ("loss", "ce", "kd", "agreement", "accuracy", "lr", "grad_norm", "skipped_steps")  # of a training step


class RunLog:
    """Appends lines with their time; a resumed run goes on in the same file."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / LOG_FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def write(self, line: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._file.flush()

    def say(self, *lines: str) -> None:
        """Also to the terminal."""
        for line in lines:
            print(line, file=sys.stderr)
            self.write(line)

    def close(self) -> None:
        self._file.close()


class LoggingTracker(Tracker):
    """Also writes a line of text for every `log_interval`th step, the last one, and every evaluation."""

    def __init__(self, run_dir: Path, log: RunLog, log_interval: int, **settings: Any) -> None:
        super().__init__(run_dir, **settings)
        self._log, self._log_interval, self._last_step = log, log_interval, settings["total_steps"]
        self._since, self._tokens = time.monotonic(), 0.0

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        super().log(metrics, step)
        self._tokens += metrics.get("train/tokens", 0)
        values = {name.removeprefix("train/"): value for name, value in metrics.items()}
        if "train/lr" not in metrics and "train/skipped_steps" not in metrics:
            self._log.write(f"evaluation at step {step}: " + _shown(values, values.keys()))
        elif step % self._log_interval == 0 or step == self._last_step or "train/skipped_steps" in metrics:
            seconds = time.monotonic() - self._since
            speed = f", {self._tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
            self._log.write(f"step {step}: {_shown(values, SHOWN)}{speed}")
            self._since, self._tokens = time.monotonic(), 0.0

    def print(self, text: str) -> None:
        super().print(text)
        self._log.write(text)


def _shown(values: dict[str, Any], names: Any) -> str:
    return ", ".join(f"{name} {values[name]:.5g}" for name in names if name in values)


def uses_wandb(asked: bool | None) -> bool:
    return "WANDB_API_KEY" in os.environ if asked is None else asked


def choose_wandb_mode(asked: str | None) -> None:
    """W&B reads its mode from the environment; what the config says goes before, a key alone means online."""
    if asked is not None:
        os.environ["WANDB_MODE"] = asked
    elif "WANDB_API_KEY" in os.environ:
        os.environ.setdefault("WANDB_MODE", "online")
