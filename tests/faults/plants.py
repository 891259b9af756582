"""Faults that are planted in a process just before it becomes a program: a signal at a chosen place, and a small disk.

A place is an operation on a file below a watched folder (what Python's audit events report) or a call of CALLS; it is
written as `event path`, with what differs from process to process left out, and counted. A program traced once yields
all of its places, and the n-th of one kind is the same place in every later run.
"""

import ctypes
import importlib
import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Modules and the names under which they look the functions up.
CALLS = {
    "call backward": ("torch.autograd", "backward"),
    "call evaluate": ("engine.train.loop", "evaluate"),
    "call eval_batch": ("engine.train.evaluate", "add_sums"),
    "call save": ("engine.train.loop", "save"),
    "call log": ("engine.train.loop", "flush_log"),
}
WORK = ("call backward", "call eval_batch")  # one micro-batch each
EVENTS = {
    **dict.fromkeys(("open", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"), 1),
    **dict.fromkeys(("os.rename", "os.symlink", "os.link", "shutil.copyfile", "shutil.move"), 2),
}
VARYING = (
    (re.compile(r"(tmp|old)-\d+"), r"\1-*"),
    (re.compile(r"\.[0-9a-f]{6,}\.(partial|replaced)"), r".*.\1"),
    (re.compile(r"\.\d+\.tmp\b"), ".*.tmp"),
    (re.compile(r"tmp[a-z0-9_]{8}\b"), "tmp*"),
)
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # flags of unshare(2)


@dataclass(frozen=True)
class Plant:
    """The signal that the process sends itself at the count-th time of a place."""

    place: str
    count: int
    number: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name} at {self.place} #{self.count}"


class Watch:
    """Writes every place that the process comes to into `trace`, and sends the planted signal at its own."""

    def __init__(self, folder: Path, trace: Path, plant: Plant | None) -> None:
        self.folder, self.plant = str(folder), plant
        self.owner, self.seen = os.getpid(), Counter[str]()
        self.file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.has_fired = False
        for place, (module, name) in CALLS.items():
            self.wrap(place, importlib.import_module(module), name)
        sys.addaudithook(self.audit)

    def wrap(self, place: str, module: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.reach(place)
            return function(*args, **kwargs)

        setattr(module, name, counted)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        paths = [self.name(arg) for arg in args[: EVENTS[event]] if isinstance(arg, str | bytes | os.PathLike)]
        if any(path is not None for path in paths):
            self.reach(" ".join([event, *(path or "elsewhere" for path in paths)]))

    def name(self, path: str | bytes | os.PathLike[Any]) -> str | None:
        """The path below the watched folder; None for one elsewhere. A link's relative target counts as below."""
        text = os.fsdecode(path)
        if os.path.isabs(text):
            if not f"{text}/".startswith(f"{self.folder}/"):
                return None
            text = text[len(self.folder) + 1 :] or "."
        for pattern, shown in VARYING:
            text = pattern.sub(shown, text)
        return text

    def reach(self, place: str) -> None:
        if os.getpid() != self.owner:  # a worker process that inherited this
            return
        self.seen[place] += 1
        late = "late " if self.has_fired else ""
        os.write(self.file, f"{late}{place}\n".encode())
        plant = self.plant
        if plant is not None and not self.has_fired and (place, self.seen[place]) == (plant.place, plant.count):
            self.has_fired = True
            os.kill(self.owner, plant.number)


def places(trace: Path) -> list[tuple[str, int]]:
    """(place, which time) in the order in which a traced process came to them."""
    seen, found = Counter[str](), []
    for line in trace.read_text().splitlines():
        seen[line] += 1
        found.append((line, seen[line]))
    return found


def late_work(trace: Path) -> int:
    """Micro-batches that were begun after the signal."""
    return sum(line.startswith(tuple(f"late {work}" for work in WORK)) for line in trace.read_text().splitlines())


def neutralize(target: str) -> None:
    """Let module:name do nothing, to see that the campaign finds what it guards against."""
    module, _, name = target.partition(":")
    setattr(importlib.import_module(module), name, lambda *args, **kwargs: None)


class SmallDisk:
    """A file system of its own for this process and its children, where the system allows that; else a limit on the
    size of every file."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = str(folder).encode(), size
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.is_mounted = self.enter() and self.mount(size, flags=0)
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    @property
    def kind(self) -> str:
        return "tmpfs in a user namespace" if self.is_mounted else "RLIMIT_FSIZE"

    def enter(self) -> bool:
        """Into namespaces of our own, as `unshare -rm` does."""
        user, group = os.getuid(), os.getgid()
        if self.libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
            return False
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        except OSError:
            return False
        return True

    def mount(self, size: int, flags: int) -> bool:
        return self.libc.mount(b"tmpfs", self.folder, b"tmpfs", flags, f"size={size}".encode()) == 0

    def grow(self, size: int) -> None:
        """Make room."""
        if self.is_mounted:
            if not self.mount(size, flags=32):  # MS_REMOUNT
                raise OSError(ctypes.get_errno(), "the small disk could not be made larger")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
