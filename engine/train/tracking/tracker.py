"""The main rank's record of a run: metrics.jsonl, the chosen backends, a progress bar and what is said on stderr."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from engine.train.tracking import to_wandb
from engine.train.tracking.backend import Backend, TrackedRun
from engine.train.tracking.metrics_file import MetricsFile
from engine.train.tracking.to_tensorboard import TensorboardBackend
from engine.train.tracking.to_text import TextLog
from engine.train.tracking.to_trackio import TrackioBackend

BACKENDS: dict[str, type[Backend]] = {
    "wandb": to_wandb.WandbBackend,
    "tensorboard": TensorboardBackend,
    "trackio": TrackioBackend,
    "text": TextLog,
}
AUTO = "auto"  # W&B where the environment asks for it
BAR_METRICS = {
    "train/token_loss": "token_loss",
    "train/lm_loss": "loss",
    "train/ce": "ce",
    "train/kd": "kd",
    "train/exact_accuracy": "exact",
    "train/lr": "lr",
    "perf/tokens_per_second": "tokens/s",
    "perf/matmul_share": "of matmul",
}


def readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def chosen(names: Sequence[str]) -> list[str]:
    """The backends that these names stand for, each once."""
    automatic = ["wandb"] if to_wandb.is_asked_for() else []
    return list(dict.fromkeys(each for name in names for each in (automatic if name == AUTO else [name])))


class Tracker:
    """Records metrics; a backend that fails is left out with a warning. With enabled=False, as on all ranks but the
    first, it does nothing at all."""

    def __init__(
        self,
        run: TrackedRun,
        *,
        backends: Sequence[str],
        resume_before_evaluation: bool = False,
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._backends: list[Backend] = []
        if not enabled:
            return

        from tqdm import tqdm

        run.directory.path.mkdir(parents=True, exist_ok=True)
        self._metrics = MetricsFile(run.directory.path, run.resume_step, resume_before_evaluation)
        self._bar = tqdm(
            total=run.total_steps,
            initial=run.resume_step,
            desc=run.directory.name,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # a log file needs few lines
        )
        for name in chosen(backends):
            try:
                backend = BACKENDS[name]()
            except ImportError as problem:
                self._go_without(name, f"it is not installed ({problem}); try: pip install {name}")
            else:
                self._backends.append(backend)
                self._try(backend, backend.start, run)

    def _go_without(self, name: str, reason: str) -> None:
        self.print(f"Warning: tracker {name} is off: {reason}. Metrics are in {self._metrics.path} all the same.")

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        if not self._enabled:
            return
        self._metrics.write(metrics, step)
        for backend in list(self._backends):
            self._try(backend, backend.log, metrics, step)
        shown = {key: f"{label} {readable(metrics[key])}" for key, label in BAR_METRICS.items() if key in metrics}
        if "train/token_loss" in shown:  # text: lm_loss, a mean over conversations, is ruled by the short ones
            shown.pop("train/lm_loss", None)
        if shown:
            self._bar.set_postfix_str(", ".join(shown.values()), refresh=False)

    def advance(self, step: int) -> None:
        if self._enabled:
            self._bar.update(step - self._bar.n)

    def complete(self) -> None:
        """The run is over: however many steps were expected, these were all."""
        if self._enabled:
            self._bar.total = self._bar.n

    def print(self, text: str) -> None:
        """Say a line on stderr and note it."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)
            self.note(text)

    def note(self, text: str) -> None:
        """Let the backends keep a line that has been said already."""
        for backend in list(self._backends):
            self._try(backend, backend.note, text)

    def _try(self, backend: Backend, call: Callable[..., None], *values: Any) -> None:
        """Call the backend; if it fails it is left out from now on."""
        try:
            call(*values)
        except backend.failures as problem:
            self._backends.remove(backend)
            self._go_without(backend.name, str(problem) or type(problem).__name__)

    def close(self) -> None:
        if not self._enabled:
            return
        self._enabled = False
        self._bar.close()
        self._metrics.close()
        for backend in self._backends:
            try:
                backend.close()
            except backend.failures as problem:
                print(f"Warning: tracker {backend.name} did not close cleanly: {problem}.", file=sys.stderr)


class Notices:
    """What a run says from its beginning, on the main rank: on stderr, and in the tracker as soon as there is one."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._tracker: Tracker | None = None
        self._early: list[str] = []

    def __call__(self, *lines: str) -> None:
        for line in lines:
            if self._tracker is not None:
                self._tracker.print(line)
            elif self._enabled:
                print(line, file=sys.stderr)
                self._early.append(line)

    def through(self, tracker: Tracker) -> None:
        self._tracker = tracker
        for line in self._early:
            tracker.note(line)
