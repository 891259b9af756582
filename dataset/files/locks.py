"""An exclusive lock on a directory, so that two programs do not write into it at the same time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(directory: Path, wait: bool = False) -> Iterator[None]:
    """Create the directory and hold its lock within the block; `wait` for another holder, or refuse at once.

    On Windows, which has no such locks, nothing is held.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"Another run is writing into {directory}. Wait until it has ended, or choose another directory."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)  # releases the lock
