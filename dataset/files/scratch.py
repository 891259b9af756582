"""Scratch folders: what only processes of this machine read; the next program removes what a killed one has left."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dataset.files.disk import disk_errors

PREFIX = "recursive_scratch_"
LOCK_FILE = "lock"
TO_MOVE = "Make room there, or set TMPDIR to another folder of this machine."


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder below TMPDIR, closed to other users, which is gone after the block; leftovers are removed first.

    The lock that tells it from a leftover is not held by children that outlive a killed process.
    """
    root = Path(tempfile.gettempdir())
    _remove_leftovers(root)
    folder, descriptor = _locked_folder(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _own_prefix() -> str:
    return f"{PREFIX}{os.getpid()}_"


def _locked_folder(root: Path) -> tuple[Path, int]:
    while True:  # until it is locked, another program may take it for a leftover
        with disk_errors(root, TO_MOVE):
            folder = Path(tempfile.mkdtemp(prefix=_own_prefix(), dir=root))
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            if _lock(descriptor) is not False and (folder / LOCK_FILE).exists():
                return folder, descriptor
            os.close(descriptor)


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        if folder.is_symlink() or folder.name.startswith(_own_prefix()):  # a process does not see its own locks
            continue
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # somebody else's, or removed meanwhile
            continue
        if _lock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether this process holds it now; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
