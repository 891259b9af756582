"""Random access to the rows of a packed corpus: memory-mapped shards, of which a few row groups are kept unpacked."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dataset.files.disk import file_sha256
from src.distillation.corpus.manifest import Manifest, Shard, Split
from src.distillation.corpus.parquet import import_parquet

KEPT_GROUPS = 64  # of about 32000 tokens: 8 MB
KEPT_FILES = 128

Row = tuple[int, NDArray[np.int32], NDArray[np.int64]]  # row id, all its ids, the lengths of its documents
Value = TypeVar("Value")


class PackedRows:
    """The rows of one split, numbered from 0 in the order of the manifest."""

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        facts = manifest.splits.get(split)
        self._folder = folder
        self._length = manifest.max_seq_length
        self._shards = facts.shards if facts else []
        self._ends = np.cumsum([shard.rows for shard in self._shards], dtype=np.int64)
        self._open: _Kept[Any] = _Kept(KEPT_FILES)
        self._groups: _Kept[list[Row]] = _Kept(KEPT_GROUPS)
        for shard in self._shards:
            self._check_size(shard)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        """A loader worker opens the files itself."""
        return self.__dict__ | {"_open": _Kept(KEPT_FILES), "_groups": _Kept(KEPT_GROUPS)}

    def row(self, index: int) -> Row:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        within = index - (int(self._ends[number]) - shard.rows)
        file = self._open.get_or_make(number, lambda: self._open_file(shard))
        per_group = file.metadata.row_group(0).num_rows
        group = within // per_group
        return self._groups.get_or_make((number, group), lambda: self._read_group(shard, file, group))[
            within % per_group
        ]

    def verify(self) -> None:
        """Compare the checksum of every shard."""
        for shard in self._shards:
            if (found := file_sha256(self._folder / shard.file)) != shard.sha256:
                raise self._damaged(shard, f"SHA-256 {found}, expected {shard.sha256}")

    def _check_size(self, shard: Shard) -> None:
        path = self._folder / shard.file
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            raise self._damaged(shard, "it is missing" if found is None else f"{found} bytes, expected {shard.bytes}")

    def _open_file(self, shard: Shard) -> Any:
        parquet = import_parquet()
        import pyarrow as pa

        try:
            file = parquet.ParquetFile(self._folder / shard.file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(shard, str(error)) from error
        if file.metadata.num_rows != shard.rows:
            raise self._damaged(shard, f"{file.metadata.num_rows} rows, expected {shard.rows}")
        return file

    def _read_group(self, shard: Shard, file: Any, group: int) -> list[Row]:
        import pyarrow as pa

        try:
            table = file.read_row_group(group, columns=["row_id", "input_ids", "document_lengths"], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(shard, str(error)) from error
        row_ids = table.column("row_id").to_pylist()
        ids = table.column("input_ids").combine_chunks().flatten().to_numpy().reshape(-1, self._length)
        lengths = [np.array(row, dtype=np.int64) for row in table.column("document_lengths").to_pylist()]
        return list(zip(row_ids, ids, lengths, strict=True))

    def _damaged(self, shard: Shard, found: str) -> ValueError:
        return ValueError(
            f"The shard {self._folder / shard.file} cannot be used: {found}. Make it anew from {shard.source}: "
            "remove the file and run data/preprocess_to_parquet.py again with --skip-existing."
        )


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
