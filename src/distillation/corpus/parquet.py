"""Parquet shards: pyarrow or how to get it, a table written to disk, and rows read from the files that a list names."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dataset.files.disk import disk_errors, file_sha256

KEPT_GROUPS = 64  # row groups that stay unpacked in memory, of some megabytes each
KEPT_FILES = 128

Row = TypeVar("Row")
Value = TypeVar("Value")


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


class ShardFacts(Protocol):
    """What a list of shards says of one file."""

    @property
    def file(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class ShardFiles(Generic[Row]):
    """Reads rows of the shards of a directory: memory-mapped files, of which a few row groups are kept unpacked.

    `read` makes the rows of a row group from an open file and the group's number. `damaged` makes the error to raise
    from what is wrong with a shard. With `checks_sums` a file's checksum is compared when it is opened.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Any, int], list[Row]],
        damaged: Callable[[Path, Any, object], ValueError],
        checks_sums: bool = False,
    ) -> None:
        self._folder, self._read, self._damaged, self._checks_sums = folder, read, damaged, checks_sums
        self.forget()

    def forget(self) -> None:
        """Open files and unpack row groups again when they are next needed."""
        self._files: _Kept[Any] = _Kept(KEPT_FILES)
        self._groups: _Kept[list[Row]] = _Kept(KEPT_GROUPS)

    def __getstate__(self) -> dict[str, Any]:
        """A loader worker opens the files itself."""
        return self.__dict__ | {"_files": _Kept(KEPT_FILES), "_groups": _Kept(KEPT_GROUPS)}

    def row(self, shard: ShardFacts, place: int) -> Row:
        file = self._files.get_or_make(shard.file, lambda: self._open(shard))
        group, within = divmod(place, file.metadata.row_group(0).num_rows)
        return self._groups.get_or_make((shard.file, group), lambda: self._unpacked(shard, file, group))[within]

    def check_sizes(self, shards: Iterable[ShardFacts]) -> None:
        for shard in shards:
            path = self._folder / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                problem = "it is missing" if found is None else f"{found} bytes, expected {shard.bytes}"
                raise self._damaged(self._folder, shard, problem)

    def check_sum(self, shard: ShardFacts) -> None:
        if (found := file_sha256(self._folder / shard.file)) != shard.sha256:
            raise self._damaged(self._folder, shard, f"SHA-256 {found}, expected {shard.sha256}")

    def _open(self, shard: ShardFacts) -> Any:
        parquet = import_parquet()
        import pyarrow as pa

        if self._checks_sums:
            self.check_sum(shard)
        try:
            file = parquet.ParquetFile(self._folder / shard.file, memory_map=True, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(self._folder, shard, error) from error
        if file.metadata.num_rows != shard.rows:
            raise self._damaged(self._folder, shard, f"{file.metadata.num_rows} rows, expected {shard.rows}")
        return file

    def _unpacked(self, shard: ShardFacts, file: Any, group: int) -> list[Row]:
        import pyarrow as pa

        try:
            return self._read(file, group)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self._damaged(self._folder, shard, error) from error


class _Kept(Generic[Value]):
    """The values that were asked for last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._limit:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]
