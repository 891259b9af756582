"""The rows of a packed corpus, from memory-mapped shards of which a few row groups are kept unpacked."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID, Batch
from dataset.files.disk import file_sha256
from dataset.text.packing import NO_DOCUMENT
from src.distillation.corpus.manifest import Shard, Split, TokenizerFacts, load_manifest
from src.distillation.corpus.parquet import import_parquet

NO_ROW = -1  # the row id of a row that only fills up the last batch
KEPT_GROUPS = 64  # of about 32000 tokens: 8 MB
KEPT_FILES = 128

Row = tuple[int, NDArray[np.int32], NDArray[np.int64]]  # row id, all its ids, the lengths of its documents
Value = TypeVar("Value")


class PackedRows:
    """The rows of one split, numbered from 0 in the order of the manifest: the rows of a RowDataset.

    A corpus of another length or tokenizer than the given ones is refused. With `verify` every shard is read once and
    its checksum compared.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        seq_len: int | None = None,
        tokenizer: TokenizerFacts | None = None,
        verify: bool = False,
    ) -> None:
        self.manifest = load_manifest(folder)
        self.manifest.check_made_for(folder, tokenizer, seq_len)
        facts = self.manifest.splits.get(split)
        self._folder, self._split = folder, split
        self._length = self.manifest.max_seq_length
        self._shards = facts.shards if facts else []
        self._ends = np.cumsum([shard.rows for shard in self._shards], dtype=np.int64)
        self._open: _Kept[Any] = _Kept(KEPT_FILES)
        self._groups: _Kept[list[Row]] = _Kept(KEPT_GROUPS)
        for shard in self._shards:
            self._check_size(shard)
            if verify and (found := file_sha256(folder / shard.file)) != shard.sha256:
                raise self._damaged(shard, f"SHA-256 {found}, expected {shard.sha256}")

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

    def in_order(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    def shuffled(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def check_enough(self, global_batch_size: int, is_test: bool) -> None:
        if len(self) < (1 if is_test else global_batch_size):
            remedy = "a larger --val-fraction" if self._split == "val" else "more data"
            raise ValueError(
                f"No {self._split} batches available: {len(self)} rows of {self._length} tokens in {self._folder}, "
                f"global_batch_size={global_batch_size}. Lower the batch size, or preprocess again with {remedy}."
            )

    def batch(self, rows: Sequence[int], num_rows: int) -> Batch:
        """`inputs`, `labels`, `positions` and `documents` as of `fill_batch`, and `row_id`: the number of each row,
        the same in every run, or NO_ROW."""
        shape = (num_rows, self._length)
        inputs = np.full(shape, self.manifest.tokenizer.pad_id, dtype=np.int32)
        labels = np.full(shape, IGNORE_LABEL_ID, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int32)
        documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
        row_id = np.full(num_rows, NO_ROW, dtype=np.int64)
        for place, index in enumerate(rows):
            row_id[place], inputs[place], lengths = self.row(index)
            ends = lengths.cumsum()
            used = ends[-1]
            labels[place, : used - 1] = inputs[place, 1:used]
            labels[place, ends - 1] = IGNORE_LABEL_ID
            positions[place, :used] = np.arange(used) - np.repeat(ends - lengths, lengths)
            documents[place, :used] = np.repeat(np.arange(len(lengths)), lengths)
        arrays = {
            "inputs": inputs,
            "labels": labels,
            "positions": positions,
            "documents": documents,
            "row_id": row_id,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

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
            f"The shard {self._folder / shard.file} cannot be used: {found}. Make it again from {shard.source}: "
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
