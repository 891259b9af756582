"""Metrics to trackio, which keeps them on this machine unless its own variables say otherwise."""

import sys
from contextlib import redirect_stdout

from engine.train.tracking.backend import TrackedRun


class TrackioBackend:
    """A run under its project and name, which a resumed run continues."""

    name = "trackio"
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)

    def __init__(self) -> None:
        import trackio

        self._trackio = trackio

    def start(self, run: TrackedRun) -> None:
        with redirect_stdout(sys.stderr):  # it says where it writes
            self._run = self._trackio.init(
                project=run.directory.project,
                name=run.directory.name,
                config=run.config,
                resume="allow" if run.resume_step else "never",
            )

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        self._run.log(metrics, step=step)

    def note(self, text: str) -> None:
        """trackio keeps no lines of text."""

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
