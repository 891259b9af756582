"""Parquet files: pyarrow or how to get it, and a table written to disk."""

import os
from pathlib import Path
from typing import Any

from dataset.files.disk import disk_errors


def import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError('Parquet files need the package pyarrow. Install it: pip install -e ".[distill]"') from error
    return pyarrow.parquet


def write_parquet(path: Path, content: Any, **options: Any) -> None:
    """Write a table so that it survives a loss of power."""
    parquet = import_parquet()
    with disk_errors(path), open(path, "wb") as file:
        parquet.write_table(content, file, **options)
        file.flush()
        os.fsync(file.fileno())
