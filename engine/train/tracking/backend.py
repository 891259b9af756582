"""What a tracking backend is told, and what it does with it."""

from dataclasses import dataclass
from typing import Any, Protocol

from engine.checkpoints.run_directory import RunDirectory


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
