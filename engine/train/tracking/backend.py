"""What a tracking backend is, and the failure that a run survives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from engine.checkpoints.run_directory import RunDirectory


class BackendError(Exception):
    """A tracking service failed; the run continues without it."""


@contextmanager
def as_backend_error(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as problem:
        raise BackendError(str(problem) or type(problem).__name__) from problem


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

    def __init__(self, run: TrackedRun) -> None: ...

    def log(self, metrics: dict[str, float | int], step: int) -> None: ...

    def note(self, text: str) -> None:
        """A line that the run has said."""

    def close(self) -> None: ...
