"""The ranks of a machine: one of them does what is needed once there, and the others wait without a collective."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any

from torch.distributed.distributed_c10d import _get_default_store

from engine.runtime.devices import ranks_from_environment, with_peers

WAIT_LIMIT = timedelta(hours=24)  # a large corpus takes longer than a collective may
PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between two looks
_numbers = count()  # all ranks enter these blocks in the same order


class MachineRanks:
    """Within the block the leader, local rank 0, does what `doing` says and tells the other ranks of its machine.

    What a rank raises within the block is raised on all ranks, those of other machines too, with the same words.
    """

    def __init__(self, doing: str) -> None:
        rank, self._world_size, self._local_rank = ranks_from_environment()
        self._leader, self._doing = rank - self._local_rank, doing
        self._store, self._name = _get_default_store(), f"machine/{next(_numbers)}"
        self._end = time.monotonic() + WAIT_LIMIT.total_seconds()
        self._has_failed = False  # on another rank

    @property
    def is_leader(self) -> bool:
        return self._local_rank == 0

    def __enter__(self) -> "MachineRanks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not self._has_failed:
            with suppress(ConnectionAbortedError):
                self._ask("set", f"{self._name}/failed", str(error) or type(error).__name__)

    def tell(self, words: str) -> None:
        """The leader's words to the other ranks of its machine."""
        self._ask("set", f"{self._name}/{self._leader}", words)

    def told(self) -> str:
        """The words of the leader, once its work is done."""
        if self._local_rank == 1:  # speaks for the others
            limit = f"{WAIT_LIMIT.total_seconds() / 3600:g} hours at most"
            print(f"rank {self._leader} is {self._doing}; the ranks of its machine wait, {limit}", file=sys.stderr)
        key = f"{self._name}/{self._leader}"
        self._wait(lambda: bool(self._ask("check", [key])), f"rank {self._leader}")
        return str(self._ask("get", key).decode())

    def meet(self) -> None:
        """Wait for all ranks of all machines, however long theirs take."""
        self._ask("add", f"{self._name}/there", 1)
        self._wait(lambda: self._ask("add", f"{self._name}/there", 0) >= self._world_size, "the other ranks")

    def _wait(self, is_over: Callable[[], bool], whom: str) -> None:
        pause = PAUSE
        while not is_over():
            if self._ask("check", [f"{self._name}/failed"]):
                self._has_failed = True
                raise ValueError(self._ask("get", f"{self._name}/failed").decode())
            if time.monotonic() > self._end:
                raise ValueError(f"Waited {WAIT_LIMIT} for {whom}, {self._doing}. Look there for what holds it up.")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ask(self, what: str, *values: Any) -> Any:
        return with_peers(getattr(self._store, what), *values)
