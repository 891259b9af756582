"""Parquet files: pyarrow or how to get it, and the records of a file as a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROWS_AT_A_TIME = 1000
BUFFER_BYTES = 1 << 20  # of a column: some files are one row group of gigabytes


def import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError('Parquet files need the package pyarrow. Install it: pip install -e ".[data]"') from error
    return pyarrow.parquet


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as dictionaries, a few of them in memory at a time."""
    with _opened(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False):
            yield from batch.to_pylist()


def count_parquet_records(path: Path) -> int:
    """How many there are, as the file itself says."""
    with _opened(path) as file:
        return file.metadata.num_rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet = import_parquet()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(
            path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a parquet file or is damaged: {error}. Remove it and run again.") from error
