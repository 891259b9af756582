"""The tracking backends, W&B, TensorBoard and train.log: where they write, and which failures a run survives."""

import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dataset.files.disk import write_file
from engine.checkpoints.run_directory import RunDirectory

WANDB_ID_FILE = "wandb_id"
LOG_FILE = "train.log"
SHOWN = ["loss", "ce", "kd", "agreement", "accuracy", "lr", "grad_norm", "skipped_steps"]  # of a training step
SHOWN += ["freed_rows", "perf/tokens_per_second", "perf/matmul_share"]


@dataclass(frozen=True)
class TrackedRun:
    """What a backend is told of the run when it starts."""

    directory: RunDirectory
    config: dict[str, Any]
    total_steps: int
    resume_step: int
    log_interval: int


class Backend(Protocol):
    name: str
    failures: tuple[type[Exception], ...]  # after one of these the run continues without the backend

    def start(self, run: TrackedRun) -> None: ...

    def log(self, metrics: dict[str, float | int], step: int) -> None: ...

    def note(self, text: str) -> None:
        """A line that the run has said."""

    def close(self) -> None: ...


class WandbBackend:
    """Metrics to Weights & Biases, offline unless WANDB_MODE says otherwise."""

    name = "wandb"

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self.failures: tuple[type[Exception], ...] = (wandb.Error, OSError, RuntimeError)  # its process may also die

    def start(self, run: TrackedRun) -> None:
        id_file = run.directory.path / WANDB_ID_FILE  # a resumed run continues the same W&B run
        if run.resume_step == 0 or not id_file.is_file():
            write_file(id_file, uuid.uuid4().hex[:12])
        self._run = self._wandb.init(
            project=run.directory.project,
            name=run.directory.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=run.config,
            dir=str(run.directory.path),
            mode=None if "WANDB_MODE" in os.environ else "offline",  # None: W&B reads the variable itself
        )

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        self._run.log(metrics, step=step)

    def note(self, text: str) -> None:
        """W&B keeps no lines of text."""

    def close(self) -> None:
        self._run.finish()


class TensorboardBackend:
    """Metrics to TensorBoard event files in the run directory."""

    name = "tensorboard"
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class = SummaryWriter

    def start(self, run: TrackedRun) -> None:
        self._writer = self._writer_class(str(run.directory.path / "tensorboard"), purge_step=run.resume_step + 1)

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def note(self, text: str) -> None:
        """TensorBoard shows numbers only."""

    def close(self) -> None:
        self._writer.close()


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


BACKENDS: dict[str, type[Backend]] = {"wandb": WandbBackend, "tensorboard": TensorboardBackend, "text": TextLog}
