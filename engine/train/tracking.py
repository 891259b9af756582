"""Records what a run measures: metrics.jsonl always, W&B and TensorBoard by choice, a progress bar on stderr."""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

METRICS_FILE = "metrics.jsonl"
FORMER_METRICS_FILE = "metrics.previous.jsonl"
WANDB_ID_FILE = "wandb_id"
BAR_METRICS = {
    "train/lm_loss": "loss",
    "train/ce": "ce",
    "train/kd": "kd",
    "train/exact_accuracy": "exact",
    "train/lr": "lr",
}


class BackendError(Exception):
    """A tracking service failed; the run goes on without it."""


@contextmanager
def _as_backend_error(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as problem:
        raise BackendError(str(problem) or type(problem).__name__) from problem


class Backend(Protocol):
    name: str

    def log(self, metrics: dict[str, float | int], step: int) -> None: ...

    def close(self) -> None: ...


class WandbBackend:
    name = "wandb"

    def __init__(self, run_dir: Path, project: str, run_name: str, config: dict[str, Any], resume_step: int) -> None:
        import wandb

        self._failures = (wandb.Error, OSError, RuntimeError)  # its service process may also die
        id_file = run_dir / WANDB_ID_FILE  # a resumed run goes on in the same W&B run
        if resume_step == 0 or not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        with _as_backend_error(*self._failures):
            self._run = wandb.init(
                project=project,
                name=run_name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                config=config,
                dir=str(run_dir),
                mode=None if "WANDB_MODE" in os.environ else "offline",  # None: W&B reads the variable itself
            )

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        with _as_backend_error(*self._failures):
            self._run.log(metrics, step=step)

    def close(self) -> None:
        with _as_backend_error(*self._failures):
            self._run.finish()


class TensorboardBackend:
    name = "tensorboard"

    def __init__(self, run_dir: Path, project: str, run_name: str, config: dict[str, Any], resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with _as_backend_error(OSError):
            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        with _as_backend_error(OSError):
            for key, value in metrics.items():
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        with _as_backend_error(OSError):
            self._writer.close()


STARTERS: dict[str, Callable[..., Backend]] = {
    WandbBackend.name: WandbBackend,
    TensorboardBackend.name: TensorboardBackend,
}


class Tracker:
    """The main rank's record of a run; with enabled=False, on the other ranks, it does nothing at all."""

    def __init__(
        self,
        run_dir: Path,
        *,
        backends: Sequence[str],
        project: str,
        run_name: str,
        config: dict[str, Any],
        total_steps: int,
        resume_step: int,
        resume_before_evaluation: bool = False,
        enabled: bool = True,
    ) -> None:
        chosen = [name for name in ([backends] if isinstance(backends, str) else backends) if name != "none"]
        unknown = [name for name in chosen if name not in STARTERS]
        if unknown:
            known = ", ".join(["none", *STARTERS])
            raise ValueError(f"tracker={unknown[0]!r} is unknown; expected one of {known}, or a list of them.")
        self._enabled = enabled
        self._backends: list[Backend] = []
        if not enabled:
            return

        from tqdm import tqdm

        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir / METRICS_FILE
        _cut_after(self._path, resume_step, resume_before_evaluation)
        self._file = self._path.open("ab", buffering=0)
        self._bar = tqdm(
            total=total_steps,
            initial=resume_step,
            desc=run_name,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # a log file needs few lines
        )
        for name in dict.fromkeys(chosen):
            try:
                self._backends.append(STARTERS[name](run_dir, project, run_name, config, resume_step))
            except ImportError as problem:
                self._go_without(name, f"it is not installed ({problem}); try: pip install {name}")
            except BackendError as problem:
                self._go_without(name, str(problem))

    def _go_without(self, name: str, reason: str) -> None:
        self.print(f"Warning: tracker {name} is off: {reason}. Metrics are in {self._path} all the same.")

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        if not self._enabled:
            return
        self._write_line(metrics, step)
        for backend in list(self._backends):
            try:
                backend.log(metrics, step)
            except BackendError as problem:
                self._backends.remove(backend)
                self._go_without(backend.name, str(problem))
        shown = [f"{label} {metrics[key]:.4g}" for key, label in BAR_METRICS.items() if key in metrics]
        if shown:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def _write_line(self, metrics: dict[str, float | int], step: int) -> None:
        values = {key: value if isinstance(value, int) else float(value) for key, value in metrics.items()}
        nonfinite = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {key: None if key in nonfinite else value for key, value in values.items()}
        if nonfinite:
            line["nonfinite"] = nonfinite
        rest = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as problem:
            advice = f"{problem.strerror} (metrics of step {step}); make room, then go on with resume=true"
            raise OSError(problem.errno, advice, str(self._path)) from problem

    def advance(self, step: int) -> None:
        if self._enabled:
            self._bar.update(step - self._bar.n)

    def print(self, text: str) -> None:
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if not self._enabled:
            return
        self._enabled = False
        self._bar.close()
        self._file.close()
        for backend in self._backends:
            try:
                backend.close()
            except BackendError as problem:
                print(f"Warning: tracker {backend.name} did not close cleanly: {problem}.", file=sys.stderr)


def _cut_after(path: Path, step: int, before_evaluation: bool) -> None:
    """Drop the lines that a resumed run writes again and what a kill left half-written; a new run starts a new file.

    `before_evaluation`: the run goes on between that step and its evaluation, if there is one, and writes that again.
    """
    if not path.exists():
        return
    if step == 0:
        path.replace(path.with_name(FORMER_METRICS_FILE))
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            number = _step_of(line)
            if number is None or number > step or (number == step and before_evaluation and not _is_of_training(line)):
                break
            end += len(line)
        file.truncate(end)  # one atomic operation, which a full disk allows too
        os.fsync(file.fileno())


def _step_of(line: bytes) -> int | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    number = found.get("step") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None


def _is_of_training(line: bytes) -> bool:
    return any(key.startswith("train/") for key in json.loads(line))
