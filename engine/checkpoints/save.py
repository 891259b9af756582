"""The writing side of checkpoints: each save is whole on disk or absent, and is written in a background thread."""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.files.disk import FULL_DISK, error_number, file_sha256
from engine.checkpoints.find import (
    BEST,
    CONFIG_FILE,
    EMA_FILE,
    LATEST,
    META_FILE,
    MODEL_FILE,
    TRAINER_FILE,
    complete_steps,
    find_damage,
    latest_step,
)
from engine.checkpoints.load import strip_prefixes

PLAIN_TYPES = (bool, int, float, str, type(None))  # what torch.load(weights_only=True) reads beside tensors


class CheckpointError(OSError):
    """A checkpoint could not be written; what was on disk before is untouched."""


@dataclass(frozen=True)
class _Snapshot:
    """Everything one save writes, in host memory and no longer tied to the running training."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    trainer: dict[str, Any]
    config_yaml: str
    meta: dict[str, Any]
    files: tuple[Path, ...]


class CheckpointStore:
    """The step folders of one run. Only the main rank makes one, because it cleans up after killed writes."""

    def __init__(self, run_dir: Path, keep_last: int | None = None) -> None:
        self.run_dir = run_dir
        self.keep_last = keep_last
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self._clean_up()

    def path_of(self, step: int) -> Path:
        return self.run_dir / f"step_{step}"

    def save(
        self,
        step: int,
        *,
        model: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        trainer: dict[str, Any],
        config_yaml: str,
        meta: dict[str, Any],
        files: Sequence[Path] = (),
    ) -> None:
        """Copy the state to host memory and write it in the background, after a write that is still running."""
        self.wait()
        reserved = {MODEL_FILE, EMA_FILE, TRAINER_FILE, CONFIG_FILE, META_FILE}
        for path in files:
            if not path.is_file() or path.name in reserved:
                raise ValueError(f"{path} cannot go into a checkpoint: it is not a file, or has the name of a part.")
        snapshot = _Snapshot(
            step=step,
            model=_host_weights(model),
            ema=None if ema is None else _host_weights(ema),
            trainer=_host_copy(trainer, "trainer"),
            config_yaml=config_yaml,
            meta=json.loads(json.dumps(meta)),
            files=tuple(files),
        )
        self._pending.append(self._writer.submit(self._write, snapshot))

    def mark_best(self, step: int) -> None:
        """Let `best` point at that step as soon as its write has ended."""
        self._pending.append(self._writer.submit(self._mark_best, step))

    def repair_best(self, step: int | None) -> None:
        """Let `best` point at the best step that a resumed run knows of: a kill may have come before `mark_best`."""
        if step is not None and find_damage(self.path_of(step)) is None:
            self.mark_best(step)

    def wait(self) -> None:
        """Wait for the write behind the scenes; raise CheckpointError if it failed."""
        pending, self._pending = self._pending, []
        wait(pending)
        for future in pending:
            future.result()

    def latest_step(self) -> int | None:
        return latest_step(self.run_dir)

    def _write(self, snapshot: _Snapshot) -> None:
        from safetensors import SafetensorError

        final = self.path_of(snapshot.step)
        temporary = self.run_dir / f".{final.name}.tmp-{os.getpid()}"
        try:
            temporary.mkdir(parents=True)
            _write_folder(temporary, snapshot)
            self._put_in_place(temporary, final)
            self._point(LATEST, snapshot.step)
        except (OSError, RuntimeError, SafetensorError) as problem:
            # torch and safetensors report a failed write in exceptions of their own.
            self._clean_up()
            raise CheckpointError(self._describe(problem, snapshot)) from problem
        self._remove_old(snapshot.step)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        """Rename the finished folder; a step that is saved again is replaced only then, and can be put back."""
        old = self.run_dir / f".{final.name}.old-{os.getpid()}"
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        _fsync(self.run_dir)
        shutil.rmtree(old, ignore_errors=True)

    def _mark_best(self, step: int) -> None:
        if not self.path_of(step).is_dir():
            raise CheckpointError(f"{self.path_of(step)} cannot be the best checkpoint: it was never saved.")
        try:
            self._point(BEST, step)
        except OSError as problem:
            raise CheckpointError(f"{self.run_dir / BEST} could not point at step {step}: {problem}") from problem

    def _point(self, name: str, step: int) -> None:
        target = self.path_of(step)
        link = self.run_dir / name
        temporary = self.run_dir / f".{name}.tmp-{os.getpid()}"
        try:
            temporary.symlink_to(target.name)
        except OSError as problem:
            if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            warnings.warn(f"{link}: this file system has no symbolic links; name {target} yourself.", stacklevel=2)
            return
        temporary.replace(link)
        _fsync(self.run_dir)

    def _remove_old(self, step: int) -> None:
        """Drop what keep_last no longer covers; steps beyond this one belong to a run that was left, and stay."""
        if self.keep_last is None:
            return
        best = Path(os.path.realpath(self.run_dir / BEST))  # of a link to itself `resolve` would fail
        reached = [path for number, path in complete_steps(self.run_dir).items() if number <= step]
        for path in reached[: -self.keep_last]:
            if path.resolve() != best:
                # Renamed first, so that a kill in the middle leaves a leftover and no broken checkpoint.
                doomed = path.rename(self.run_dir / f".{path.name}.tmp-{os.getpid()}")
                shutil.rmtree(doomed, ignore_errors=True)

    def _clean_up(self) -> None:
        """Remove what killed writes left behind, and put back a step that was being replaced."""
        for old in self.run_dir.glob(".step_*.old-*"):
            final = self.run_dir / old.name[1:].partition(".old-")[0]
            if not final.exists() and find_damage(old) is None:
                old.rename(final)
            else:
                shutil.rmtree(old, ignore_errors=True)
        for folder in self.run_dir.glob(".step_*.tmp-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.run_dir.glob("*.[0-9]*.tmp"):  # of `new_file`
            file.unlink(missing_ok=True)
        for link in (*self.run_dir.glob(".latest.tmp-*"), *self.run_dir.glob(".best.tmp-*")):
            link.unlink(missing_ok=True)

    def _describe(self, problem: BaseException, snapshot: _Snapshot) -> str:
        weights = [*snapshot.model.values(), *(snapshot.ema or {}).values()]
        needed = sum(tensor.nbytes for tensor in [*weights, *_tensors_in(snapshot.trainer)])
        free = shutil.disk_usage(self.run_dir).free
        last = self.latest_step()
        reason = "the disk is full or the quota is used up" if error_number(problem) in FULL_DISK else str(problem)
        good = "There is no earlier checkpoint" if last is None else f"The last good checkpoint is {self.path_of(last)}"
        return (
            f"The checkpoint of step {snapshot.step} could not be written to {self.run_dir}: {reason} "
            f"(about {needed:,} bytes needed, {free:,} free). {good}; everything saved before is untouched. "
            f"Make room (for example with a smaller keep_last), then resume with the same command and resume=true."
        )


def _write_folder(folder: Path, snapshot: _Snapshot) -> None:
    from safetensors.torch import save_file

    save_file(snapshot.model, folder / MODEL_FILE)
    if snapshot.ema is not None:
        save_file(snapshot.ema, folder / EMA_FILE)
    with (folder / TRAINER_FILE).open("wb") as file:  # through a Python file a failed write keeps its error number
        torch.save(snapshot.trainer, file)
    (folder / CONFIG_FILE).write_text(snapshot.config_yaml, encoding="utf-8")
    for path in snapshot.files:
        shutil.copyfile(path, folder / path.name)

    facts = {
        "step": snapshot.step,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "parameters": sum(tensor.numel() for tensor in snapshot.model.values()),
        **snapshot.meta,
    }
    write_meta(folder, facts, sorted(folder.iterdir()))


def write_meta(folder: Path, facts: dict[str, Any], files: Sequence[Path]) -> None:
    """Finish the folder of a checkpoint: facts, and what these files of it hold; all of it is on disk then."""
    meta = facts | {"files": {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in files}}
    (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of their own for all, because safetensors refuses tensors that share memory."""
    return {name: _host_tensor(tensor).contiguous() for name, tensor in strip_prefixes(weights).items()}


def _host_tensor(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _host_copy(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return _host_tensor(value)
    if isinstance(value, dict):
        return {key: _host_copy(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_host_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value) in PLAIN_TYPES:
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; a trainer state holds tensors, numbers and strings only.")


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors_in(item)]
