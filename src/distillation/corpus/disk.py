"""What every room that reads or writes shards needs: pyarrow or how to get it, errors of the disk in words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError('Parquet files need the package pyarrow. Install it: pip install -e ".[distill]"') from error
    return pyarrow.parquet


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        full = "The disk is full. " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ValueError(
            f"Cannot write {path}: {error.strerror or error}. {full}Make room or choose another folder, and run again; "
            "what was finished is kept."
        ) from error
