"""Processes that each carry out one call after another; one that dies costs only the call it was at."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Worker(NamedTuple):
    """A pool of one process, so that its end is nobody else's."""

    pool: ProcessPoolExecutor
    pid: int


class Workers(Generic[Key]):
    """At most `count` processes, which write what they print to `log` and ignore Ctrl-C.

    Leaving the `with` block ends them, whatever they are at; so does SIGTERM, with exit code 143.
    """

    def __init__(self, count: int, log: Path) -> None:
        self._count = count
        self._log = log
        self._idle: list[Worker] = []
        self._calls: dict[Future[Any], tuple[Key, Worker]] = {}
        self._former: Any = None

    def __enter__(self) -> "Workers[Key]":
        self._former = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._former)
        for _, worker in self._calls.values():
            os.kill(worker.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            worker.pool.shutdown()
        for worker in self._idle:
            worker.pool.shutdown()

    @property
    def busy(self) -> set[Key]:
        """What they are at."""
        return {key for key, _ in self._calls.values()}

    @property
    def num_free(self) -> int:
        return self._count - len(self._calls)

    def start(self, key: Key, function: Callable[..., Any], *arguments: Any) -> None:
        worker = self._idle.pop() if self._idle else self._new()
        self._calls[worker.pool.submit(function, *arguments)] = (key, worker)

    def finished(self) -> Iterator[tuple[Key, Future[Any]]]:
        """Wait for at least one call; that of a process which died raises BrokenProcessPool when its result is read."""
        for call in wait(self._calls, return_when=FIRST_COMPLETED).done:
            key, worker = self._calls.pop(call)
            if isinstance(call.exception(), BrokenProcessPool):
                worker.pool.shutdown()
            else:
                self._idle.append(worker)
            yield key, call

    def _new(self) -> Worker:
        pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(self._log,))
        return Worker(pool, pool.submit(os.getpid).result())


def _begin(log: Path) -> None:
    """The parent decides when a process ends; what it prints goes into the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):  # a training listens to Ctrl-C again, which a terminal sends to the parent's group only
        os.setsid()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
