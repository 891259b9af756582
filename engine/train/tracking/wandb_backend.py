"""Metrics to Weights & Biases, offline unless WANDB_MODE says otherwise."""

import os
import uuid

from engine.train.tracking.backend import TrackedRun, as_backend_error

WANDB_ID_FILE = "wandb_id"


class WandbBackend:
    name = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._failures = (wandb.Error, OSError, RuntimeError)  # its service process may also die
        id_file = run.directory.path / WANDB_ID_FILE  # a resumed run continues the same W&B run
        if run.resume_step == 0 or not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        with as_backend_error(*self._failures):
            self._run = wandb.init(
                project=run.directory.project,
                name=run.directory.name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                config=run.config,
                dir=str(run.directory.path),
                mode=None if "WANDB_MODE" in os.environ else "offline",  # None: W&B reads the variable itself
            )

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        with as_backend_error(*self._failures):
            self._run.log(metrics, step=step)

    def note(self, text: str) -> None:
        """W&B keeps no lines of text."""

    def close(self) -> None:
        with as_backend_error(*self._failures):
            self._run.finish()
