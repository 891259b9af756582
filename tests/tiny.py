"""A run that fits into a second: tiny puzzles, a tiny model, and ways to start the training program on them."""

import atexit
import contextlib
import io
import json
import logging
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dataset.build_sudoku_dataset import main as build_sudoku
from dataset.puzzles.format import read_metadata
from engine.build.puzzles import build_model
from engine.checkpoints.load import load_checkpoint
from engine.config import schema
from engine.runtime.devices import Runtime
from tests.recorded.warm import leave_as_a_program

ROOT = Path(__file__).resolve().parents[1]
DOOR = ROOT / "pretrain.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CPU = Runtime(device=torch.device("cpu"), rank=0, world_size=1, use_compile=False)
TRM = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"

ARCH = {
    "hidden_size": 32,
    "num_heads": 2,
    "L_layers": 1,
    "H_cycles": 2,
    "L_cycles": 1,
    "halt_max_steps": 3,
    "puzzle_emb_ndim": 0,
    "puzzle_emb_len": 0,
    "forward_dtype": "float32",
}
RUN = {
    "evaluators": [],
    "device": "cpu",
    "compile": False,
    "global_batch_size": 8,
    "epochs": 9,
    "eval_interval": 3,
    "lr": 1e-2,
    "lr_warmup_steps": 2,
    "dataloader_workers": 0,
    "log_interval": 1,
}


def write_sudoku(folder: Path, identifiers: int = 1) -> Path:
    """24 training and 10 held-out 4x4 puzzles; with `identifiers` above 1 they are numbered in turn, 0 left blank."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        size = ["--generate", "4x4", "--count", "24", "--test-count", "10"]
        build_sudoku([*size, "--seed", "0", "--num-workers", "1", "--output-dir", str(folder)])
    if identifiers > 1:
        for split in ("train", "test"):
            file = folder / split / "all__puzzle_identifiers.npy"
            np.save(file, 1 + np.arange(len(np.load(file)), dtype=np.int32) % (identifiers - 1))
            edit_json(folder / split / "dataset.json", num_puzzle_identifiers=identifiers)
        names = ["<blank>", *(f"puzzle {number}" for number in range(1, identifiers))]
        (folder / "identifiers.json").write_text(json.dumps(names))
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def halting_weights(file: Path, data: Path, arch: dict[str, Any] | None = None) -> Path:
    """Weights, as torch.save writes them, of a model whose rows want to halt at once, so that exploration matters."""
    config = schema.ArchChoice.model_validate({"name": TRM} | ARCH | (arch or {}))
    head = build_model(config, read_metadata(data, "train"), rows=1, runtime=CPU)
    torch.nn.init.constant_(head.model.inner.q_head.bias, 5.0)
    torch.save(head.state_dict(), file)
    return file


def flags(data: Path, run_dir: Path, arch: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Command line of a tiny run."""
    run = RUN | {"data_paths": [str(data)], "checkpoint_path": str(run_dir)} | changes
    options = {f"arch.{key}": value for key, value in (ARCH | (arch or {})).items()} | run
    return [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in options.items()]


@dataclass
class Ended:
    """What a program left behind when it ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, dict[str, float]]:
        """The result that it printed."""
        return json.loads(self.out)


def within(program: Callable[..., Any], *given: Any, stdin: str = "") -> Ended:
    """What a program leaves that runs within this process; as a process of its own it would spend seconds on imports."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program(*given)
        except SystemExit as leave:  # with a text it means code 1, and Python prints it
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            err.write("" if isinstance(leave.code, int) or leave.code is None else f"{leave.code}\n")
    return Ended(code, out.getvalue(), err.getvalue())


def run_door(name: str, *words: Any, stdin: str = "") -> Ended:
    """The entry point at this path of the repository, within this process."""
    path = str(ROOT / name)
    with mock.patch.object(sys, "argv", [path, *map(str, words)]), mock.patch.object(sys, "path", [*sys.path]):
        return within(runpy.run_path, path, None, "__main__", stdin=stdin)


def pretrain(arguments: list[str]) -> Ended:
    return run_door("pretrain.py", *arguments)


class Fork:
    """A Python program in a fork of this process, which need not import torch again, with what `Popen` has of it; modules
    of this repository it finds and imports itself."""

    def __init__(self, words: list[str], cwd: Path, stdin: str, environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self._place = tempfile.TemporaryDirectory()
        files = {name: str(Path(self._place.name) / name) for name in ("stdin", "stdout", "stderr")}
        for file in files.values():
            Path(file).write_text(stdin if file == files["stdin"] else "")
        self.stdout, self.stderr = (open(files[name]) for name in ("stdout", "stderr"))  # noqa: SIM115
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of threads, which a fork does not have
            self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become({"command": words, "root": str(cwd), "cwd": str(cwd), **files}, environment)
            finally:
                os._exit(1)  # whatever happens, what this process does goes on in it alone

    def _become(self, request: dict[str, Any], environment: dict[str, str]) -> None:
        os.setsid()
        os.environ.update(environment)
        ours = {path.stem for path in ROOT.iterdir()}
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        if request["command"][0] == "-c":
            program = Path(self._place.name, "program.py")
            program.write_text(request["command"][1])
            request["command"][:2] = [str(program)]
            paths.append(request["cwd"])
        sys.path[:] = ["", *filter(None, paths), *(path for path in sys.path if path not in ("", str(ROOT)))]
        tempfile.tempdir = None  # found anew: TMPDIR may be another one
        atexit._clear()  # what this process does at its end, and does with its own children
        multiprocessing.process._children.clear()
        multiprocessing.util._finalizer_registry.clear()
        atexit.register(multiprocessing.util._exit_function)
        logging.getLogger().handlers.clear()
        warnings.resetwarnings()  # pytest collects them, a program prints them
        warnings.showwarning = lambda *what: sys.stderr.write(warnings.formatwarning(*what[:4]))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        leave_as_a_program(request)

    def poll(self) -> int | None:
        if self.returncode is None and (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(status[1])
        return self.returncode

    def wait(self, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.005)

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.wait(timeout)
        with self.stdout, self.stderr, self._place:
            return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


# With an accelerator, torch keeps threads that a fork does not have.
CAN_FORK = sys.platform == "linux" and not torch.accelerator.is_available()


def start_python(
    words: Sequence[Any], cwd: Path, stdin: str = "", is_new: bool = False, **environment: str
) -> Fork | subprocess.Popen[str]:
    """The process that `python` with these words is, the leader of its group; a new one shares nothing with this one."""
    words = [str(word) for word in words]
    if CAN_FORK and not is_new:
        return Fork(words, cwd, stdin, environment)
    with tempfile.TemporaryFile("w+") as file:
        file.write(stdin)
        file.seek(0)
        pipes = {"stdin": file, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, *words],
            **{"cwd": cwd, "env": os.environ | environment, "text": True, "start_new_session": True, **pipes},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )


def first_line(process: Fork | subprocess.Popen[str], seconds: float = 120) -> str:
    """What it prints first, as soon as it does."""
    assert process.stdout is not None
    line, deadline = process.stdout.readline(), time.monotonic() + seconds
    while not line.endswith("\n"):  # of a file, at whose end a reader does not wait
        assert process.poll() is None and time.monotonic() < deadline, line
        time.sleep(0.005)
        line += process.stdout.readline()
    return line


def run_python(words: Sequence[Any], cwd: Path, stdin: str = "", timeout: float = 280, **environment: str) -> Ended:
    return end(start_python(words, cwd, stdin, **environment), timeout)


def start(
    arguments: list[str], cwd: Path, *before: str, door: str = "pretrain.py", **environment: str
) -> Fork | subprocess.Popen[str]:
    """Run an entry point as a process; `before` stands in front of its path, such as the words of torchrun."""
    return start_python([*before, ROOT / door, *arguments], cwd, **environment)


def end(process: Fork | subprocess.Popen[str], timeout: float = 120) -> Ended:
    """Wait for a process; one that does not end takes its whole group with it."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, out, err)


def signal_at_step(process: Fork | subprocess.Popen[str], run_dir: Path, step: int, number: int) -> Ended:
    """Send a signal to the whole group as soon as that step has been logged."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run_dir / "metrics.jsonl").exists() and any(line["step"] >= step for line in logged(run_dir)):
            os.killpg(process.pid, number)
            break
        time.sleep(0.005)
    return end(process)


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl without the times at which they were written."""
    lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return [{key: value for key, value in json.loads(line).items() if not is_timing(key)} for line in lines]


def is_timing(key: str) -> bool:
    return key == "time" or key.startswith("perf/")


def steps_on_disk(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in run_dir.glob("step_*"))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Checkpoints are written behind the training's back, so what a stopped run saved may take a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def assert_same_end(one: Path, other: Path, atol: float = 0.0) -> None:
    """Both runs ended with the same weights, averaged weights and carry, whose activations may differ a little more."""
    ends = [load_checkpoint(path / "latest", with_trainer=True) for path in (one, other)]
    weights, carries = [(e.weights, e.ema or {}) for e in ends], [e.trainer["task"] for e in ends]
    torch.testing.assert_close(*weights, rtol=0, atol=atol)
    torch.testing.assert_close(*carries, rtol=0, atol=20 * atol)


class Recorder:
    """Stands in for the tracker and remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.said: list[str] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append({"step": step, **metrics})

    def advance(self, step: int) -> None:
        self.step = step

    def print(self, text: str) -> None:
        self.said.append(text)
