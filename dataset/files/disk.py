"""Files on disk: written whole or not at all, locks, SHA-256, and errors that say what to do."""

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_locks: set[int] = set()  # descriptors of those that this process holds


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write into that becomes `target` when the block ends, and vanishes if it fails."""
    if target.exists() and not target.is_file():  # a device, say, which renaming would take away from everybody
        raise FileExistsError(errno.EEXIST, "it stands for something else than a file")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(target: Path, content: str | bytes) -> None:
    """Put `content` into `target`, which holds either what it held before or all of it at any time."""
    with disk_errors(target), new_file(target) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_space(folder: Path, needed: int) -> None:
    """Raise the error of a full disk, with both numbers, before anything is written."""
    if needed > shutil.disk_usage(folder).free:
        raise _no_room(folder, needed)


def _no_room(folder: Path, needed: int) -> OSError:
    free = shutil.disk_usage(folder).free
    return OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def allocate(file: BinaryIO, size: int) -> None:
    """Append so many zeros for which the disk has room: a memory map of a file with holes dies where it is full."""
    file.flush()
    try:
        try:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        except (AttributeError, OSError) as error:  # macOS and Windows have no such call, some file systems neither
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            for start in range(0, size, BLOCK_BYTES):
                file.write(bytes(min(BLOCK_BYTES, size - start)))
            file.flush()
    except OSError as error:
        if error.errno in FULL_DISK:
            raise _no_room(Path(file.name).parent, size) from error
        raise


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


TO_RETRY = "Make room or choose another folder, and run again; what is finished is kept."


@contextmanager
def disk_errors(path: Path, remedy: str = TO_RETRY) -> Iterator[None]:
    """Turn an error of the disk into a ValueError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error_number(error)
        if number is None and not isinstance(error, OSError):
            raise
        said = getattr(error, "strerror", None) or (os.strerror(number) if number else error)
        full = "The disk is full. " if number in FULL_DISK else ""
        raise ValueError(f"Cannot write {path}: {said}. {full}{remedy}") from error


def error_number(problem: BaseException | None) -> int | None:
    """The operating system's error number, also of an error that torch or safetensors wrapped."""
    while problem is not None:
        if isinstance(problem, OSError):
            return problem.errno
        if named := re.search(r"os error (\d+)", str(problem)):
            return int(named[1])
        problem = problem.__cause__ or problem.__context__
    return None


def make_directory(directory: Path) -> list[Path]:
    """Create the directory and its parents; returns those that were not there, the innermost first."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return new


def remove_if_empty(directories: list[Path]) -> None:
    """What `make_directory` has created, if nothing came of it."""
    with suppress(OSError):
        for path in directories:
            path.rmdir()


@contextmanager
def exclusive_lock(directory: Path, wait: bool = False) -> Iterator[None]:
    """Create the directory and hold its lock within the block; `wait` for another holder, or refuse at once.

    Directories that were not there before and are empty afterwards, parents too, are removed. On Windows, which has no
    such locks, nothing is held. Children that are forked meanwhile and outlive a killed process do not hold it.
    """
    new = make_directory(directory)
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
    _locks.add(descriptor)
    try:
        yield
    finally:
        remove_if_empty(new)
        _locks.discard(descriptor)
        os.close(descriptor)  # releases the lock


def _leave_locks() -> None:
    """In a forked child: a lock is held as long as a descriptor of it is open in any process."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)
