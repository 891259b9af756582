"""Runs programs as forks of one process that has imported everything once, and says how they ended."""

import importlib
import os
import pkgutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.plants import Plant, Watch, neutralize
from tests.recorded.warm import LIBRARIES, leave_as_a_program
from tests.recorded.world import DOORS, World

LIMIT = 150.0  # seconds of a program on a shared machine
PACKAGES = ("models", "dataset", "evaluators", "engine", "src", "lab")
TIMED_OUT = -1000


def import_everything() -> None:
    """So that a fork has it already."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in PACKAGES:
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.startswith("dataset.build_"):  # entry points run as __main__
                importlib.import_module(found.name)


@dataclass
class Ended:
    """What a program left when it ended."""

    code: int  # of a signal: minus its number
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line on standard error, which users read."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


@dataclass
class Programs(World):
    """One tree and one folder, as of recorded numbers, with programs that faults may be planted in."""

    sabotaged: list[str] = field(default_factory=list)  # functions of the tree that do nothing, to try the campaign
    is_trouble: bool = True  # and where: not while inputs are made

    def run_warm(self, command: list[str], files: dict[str, str], cwd: Path) -> int:
        return self.fork(command, files, cwd, None, None, LIMIT)

    def run(
        self,
        door: str,
        *words: Any,
        place: Path,
        plant: Plant | None = None,
        trace: Path | None = None,
        stdin: str = "",
        limit: float = LIMIT,
        kill_after: float | None = None,
        output: Path | None = None,
    ) -> Ended:
        """Start a program in `place`, beside which (or in `output`) its output is kept; `kill_after` so many seconds it
        is killed."""
        program = DOORS[door] if DOORS[door][0] == "-m" else [str(self.root / DOORS[door][0])]
        command = [*program, *(str(word) for word in words)]
        files = {name: str((output or place.parent) / f"{place.name}.{name}") for name in ("stdin", "stdout", "stderr")}
        Path(files["stdin"]).write_text(stdin, encoding="utf-8")
        watch = None if trace is None else (place, trace, plant)
        started = time.monotonic()
        code = self.fork(command, files, place, watch, kill_after, limit)
        out, err = (Path(files[name]).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Ended(code, out, err, time.monotonic() - started)

    def fork(
        self,
        command: list[str],
        files: dict[str, str],
        cwd: Path,
        watch: tuple[Path, Path, Plant | None] | None,
        kill_after: float | None,
        limit: float,
    ) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if watch is not None:
                Watch(*watch)
            for target in self.sabotaged if self.is_trouble else ():
                neutralize(target)
            leave_as_a_program({"command": command, "root": str(self.root), "cwd": str(cwd), **files})
        return wait(child, limit if kill_after is None else kill_after, TIMED_OUT if kill_after is None else None)


def wait(child: int, seconds: float, code_if_late: int | None) -> int:
    """The exit code; a process that takes longer is killed with its group."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            return os.waitstatus_to_exitcode(status) if code_if_late is None else code_if_late
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)
