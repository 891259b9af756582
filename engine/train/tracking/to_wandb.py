"""Metrics to Weights & Biases, and when a run does so without being told."""

import os
import uuid
from typing import Any

from dataset.files.disk import write_file
from engine.train.tracking.backend import TrackedRun

WANDB_ID_FILE = "wandb_id"


def is_asked_for() -> bool:
    """Whether the environment asks for W&B: by WANDB_MODE if it is set, else by WANDB_API_KEY."""
    mode = os.environ.get("WANDB_MODE")
    return mode in ("online", "offline") if mode else bool(os.environ.get("WANDB_API_KEY"))


class WandbBackend:
    """Metrics to Weights & Biases: as WANDB_MODE says, else online with WANDB_API_KEY, else offline."""

    name = "wandb"

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        # Its process may also die, and a key or a mode that it does not understand is a ValueError.
        self.failures: tuple[type[Exception], ...] = (wandb.Error, OSError, RuntimeError, ValueError)

    def start(self, run: TrackedRun) -> None:
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
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
            mode=mode,
        )

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        self._run.log(metrics, step=step)

    def note(self, text: str) -> None:
        """W&B keeps no lines of text."""

    def close(self) -> None:
        self._run.finish()
