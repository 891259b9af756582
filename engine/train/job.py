"""What a kind of run provides so that the engine can carry it out: puzzles, text, distillation and teacher tuning alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoints.load import Checkpoint
from engine.checkpoints.run_directory import RunDirectory
from engine.runtime.devices import COLLECTIVE_MINUTES, Runtime
from engine.train.evaluate import Report
from engine.train.loop import Run, RunParts
from engine.train.optimizers import OptimizerSet
from engine.train.tracking.tracker import Notices


@dataclass(frozen=True)
class RunSettings:
    """What the engine has to know of a run before it is composed."""

    config: dict[str, Any]  # as tracking services show it
    device: str
    compile: str | bool
    seed: int
    collective_minutes: float = COLLECTIVE_MINUTES  # that ranks wait for each other
    resume_from: str | None = None  # as `checkpoint_to_resume` understands it
    start_from: str | None = None  # a checkpoint whose weights a new run starts with
    ema_rate: float | None = None
    ema_is_warmed_up: bool = False
    ema_start: int = 0
    keep_last: int | None = None
    trackers: Sequence[str] = ()
    eval_only: bool = False
    to_hold_out: str = ""  # how to get held-out data
    lengths: str = ""  # the options that end the run, and their values


@dataclass(frozen=True)
class RunStart:
    """What the engine has opened when a run is composed."""

    runtime: Runtime
    directory: RunDirectory
    checkpoint: Checkpoint | None  # the one to resume from
    say: Notices
    stack: ExitStack  # closes at the end of the run what is entered into it


class Job(ABC):
    """A kind of run with its checked config. Its methods are called in this order,
    `resume_command` when a signal stopped the run."""

    @property
    @abstractmethod
    def settings(self) -> RunSettings: ...

    @abstractmethod
    def directory(self, runtime: Runtime, say: Notices) -> RunDirectory:
        """Where the run writes; nothing is written yet."""

    def claim(self, directory: RunDirectory, runtime: Runtime) -> None:  # noqa: B027 - most kinds have nothing to do here
        """Called once the directory is locked, on the main rank: refuse it, or write what must come first."""

    def check_held_out(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - most kinds have nothing to do here
        """Called before a checkpoint is only evaluated: refuse held-out data that it was trained on."""

    @abstractmethod
    def compose(self, start: RunStart) -> RunParts:
        """The parts, with fresh weights; the engine loads those of a checkpoint."""

    @abstractmethod
    def optimizers(self, parts: RunParts, runtime: Runtime) -> OptimizerSet: ...

    def clear(self, directory: RunDirectory, checkpoint: Checkpoint | None, say: Notices) -> None:  # noqa: B027 - most kinds have nothing to do here
        """Called on the main rank when all parts fit: make room in the directory."""

    def begin(self, run: Run, checkpoint: Checkpoint | None, say: Notices) -> None:  # noqa: B027 - most kinds have nothing to do here
        """Called right before the first step."""

    def finish(self, run: Run, report: Report | None, say: Notices) -> dict[str, Any] | None:
        """The result of a run that is over; `report` is its last evaluation."""
        return report

    @abstractmethod
    def resume_command(self, run_dir: Path) -> str:
        """What to type to resume this run."""
