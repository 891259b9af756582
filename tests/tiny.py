"""A run that fits into a second: tiny puzzles, a tiny model, and ways to start the training program on them."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

ROOT = Path(__file__).resolve().parents[1]
DOOR = ROOT / "pretrain.py"
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


def pretrain(arguments: list[str], door: Path = DOOR) -> Ended:
    """Run the program within this process; as a process of its own it would spend seconds on imports."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(door), *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(door), run_name="__main__")
        except SystemExit as leave:  # with a text it means code 1, and Python prints it
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            err.write("" if isinstance(leave.code, int) or leave.code is None else f"{leave.code}\n")
    return Ended(code, out.getvalue(), err.getvalue())


def start(arguments: list[str], cwd: Path, *before: str, **environment: str) -> subprocess.Popen[str]:
    """Run the program as a process; `before` stands in front of its path, such as the words of torchrun."""
    return subprocess.Popen(
        [sys.executable, *before, str(DOOR), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], timeout: float = 120) -> Ended:
    """Wait for a process; one that does not end takes its whole group with it."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, out, err)


def signal_at_step(process: subprocess.Popen[str], run_dir: Path, step: int, number: int) -> Ended:
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
