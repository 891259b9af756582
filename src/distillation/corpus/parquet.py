"""Parquet shards: a table written to disk, and rows read from the files that a list names."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from dataset.files.disk import disk_errors, file_sha256
from dataset.files.parquet import import_parquet

KEPT_GROUPS = 64  # row groups that stay unpacked in memory, of some megabytes each
KEPT_FILES = 128

Row = TypeVar("Row")


def write_parquet(path: Path, content: Any, **options: Any) -> None:
    """Write a table so that it survives a loss of power, each page with a checksum that reading verifies.

    A file that cannot be written to its end is removed.
    """
    parquet = import_parquet()
    with disk_errors(path), open(path, "wb") as file:
        try:
            parquet.write_table(content, file, write_page_checksum=True, **options)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


class ShardFiles(Generic[Row]):
    """Reads the rows of shards, counted from the first: memory-mapped files, of which a few row groups are kept unpacked.

    A shard has `file`, `rows`, `bytes` and `sha256`. `read` makes the rows of a row group from an open file and the
    group's number, and raises ValueError for what they may not be. `damaged` makes the error to raise from what is wrong
    with a shard. A file's checksum is compared when it is opened first.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Any],
        read: Callable[[Any, int], list[Row]],
        damaged: Callable[[Path, Any, object], ValueError],
    ) -> None:
        self._folder, self._read, self._damaged = folder, read, damaged
        self.use(shards)
        for shard in shards:
            path = folder / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                problem = "it is missing" if found is None else f"{found} bytes, expected {shard.bytes}"
                raise damaged(folder, shard, problem)
        self.forget()

    def use(self, shards: Sequence[Any]) -> None:
        """Read these from now on; a shard keeps its name, not its place among them."""
        self.shards = shards
        self._by_name = {shard.file: shard for shard in shards}
        self._ends = np.cumsum([shard.rows for shard in shards], dtype=np.int64)

    def forget(self) -> None:
        """Open files, which are checked, and unpack row groups again when they are next needed."""
        self._checked: set[str] = set()
        self._opened = lru_cache(KEPT_FILES)(self._open)
        self._unpacked = lru_cache(KEPT_GROUPS)(self._unpack)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_opened", "_unpacked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A loader worker opens the files itself."""
        self.__dict__.update(state)
        self.forget()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index: int) -> tuple[Any, int]:
        """The shard that holds a row, and the row's place in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        return shard, index - (int(self._ends[number]) - shard.rows)

    def row(self, index: int) -> Row:
        shard, place = self.find(index)
        group, within = divmod(place, self._opened(shard.file).metadata.row_group(0).num_rows)
        return self._unpacked(shard.file, group)[within]

    def check_sum(self, shard: Any) -> None:
        if (found := file_sha256(self._folder / shard.file)) != shard.sha256:
            raise self._damaged(self._folder, shard, f"SHA-256 {found}, expected {shard.sha256}")
        self._checked.add(shard.file)

    def _open(self, name: str) -> Any:
        parquet = import_parquet()
        import pyarrow as pa

        shard = self._by_name[name]
        if name not in self._checked:
            self.check_sum(shard)
        try:
            file = parquet.ParquetFile(self._folder / name, memory_map=True, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(self._folder, shard, error) from error
        if file.metadata.num_rows != shard.rows:
            raise self._damaged(self._folder, shard, f"{file.metadata.num_rows} rows, expected {shard.rows}")
        return file

    def _unpack(self, name: str, group: int) -> list[Row]:
        import pyarrow as pa

        file = self._opened(name)
        try:
            return self._read(file, group)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise self._damaged(self._folder, self._by_name[name], error) from error
