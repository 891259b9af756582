"""Packs documents into rows of one length and writes them as parquet shards, which appear only when they are whole."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID
from dataset.files.disk import disk_errors, file_sha256
from dataset.files.parquet import import_parquet
from dataset.text.packing import RowPlanner
from src.distillation.corpus.documents import CorpusDocuments
from src.distillation.corpus.manifest import MANIFEST_FILE, Shard, Split, load_manifest
from src.distillation.corpus.parquet import write_parquet

BYTES_PER_TOKEN = 4.3  # of a shard, measured with a vocabulary of 32000: half are ids, half are labels
ROW_GROUP_TOKENS = 1 << 15  # what is read at a time to get one row
UNFINISHED = ".tmp"
OUR_SHARD = re.compile(r"(train|val)-\d{5}(-[0-9a-f]{8}\.parquet|\.parquet\.tmp)")


@dataclass(frozen=True)
class Pieces:
    """Documents, those longer than a row cut in several."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64]
    numbers: NDArray[np.int64]  # of a piece within its document, from 0


@dataclass(frozen=True)
class PackedTable:
    """Rows side by side, as they stand in a shard; the last three tell of each row's documents, in their order."""

    input_ids: NDArray[np.int32]  # (rows, length)
    attention_mask: NDArray[np.int8]
    labels: NDArray[np.int32]
    row_starts: NDArray[np.int64]  # where each row's documents begin in what follows, and the end
    document_lengths: NDArray[np.int32]
    document_lines: NDArray[np.int64]
    document_pieces: NDArray[np.int32]


def cut_into_pieces(documents: CorpusDocuments, mask: NDArray[np.bool_], max_length: int) -> Pieces:
    """The chosen documents; no piece is a single token, which would teach nothing, if the row has room for two."""
    chosen = documents.lengths[mask]
    per_document = -(-chosen // max_length)
    lengths = np.full(per_document.sum(), max_length, dtype=np.int64)
    ends = per_document.cumsum()
    lengths[ends - 1] = chosen - (per_document - 1) * max_length
    lonely = ends[(lengths[ends - 1] == 1) & (per_document > 1)] - 1
    if max_length > 2:
        lengths[lonely] += 1
        lengths[lonely - 1] -= 1
    return Pieces(
        ids=documents.ids[np.repeat(mask, documents.lengths)],
        lengths=lengths,
        lines=np.repeat(documents.lines[mask], per_document),
        numbers=_arange_each(per_document),
    )


def pack(pieces: list[Pieces], max_length: int, pad_id: int) -> PackedTable:
    """Every piece in exactly one row; rows and the pieces within them stand in the order of the source."""
    tokens = np.concatenate([part.ids for part in pieces])
    lengths = np.concatenate([part.lengths for part in pieces])
    rows = RowPlanner(lengths, max_length, packing=True).in_order()
    order, starts = rows.documents, lengths.cumsum() - lengths
    ordered = lengths[order]
    before = ordered.cumsum() - ordered  # tokens before each piece
    row_of, start_of = rows.places(lengths)
    place_of = row_of * max_length + start_of
    narrow = np.int32 if len(rows) * max_length < 1 << 31 else np.int64  # the largest arrays here are indices
    along = np.arange(len(tokens), dtype=narrow)
    source = along + np.repeat((starts[order] - before).astype(narrow), ordered)
    place = along + np.repeat((place_of - before).astype(narrow), ordered)

    shape = (len(rows), max_length)
    input_ids = np.full(shape, pad_id, dtype=np.int32)
    input_ids.reshape(-1)[place] = tokens[source]
    attention_mask = np.zeros(shape, dtype=np.int8)
    attention_mask.reshape(-1)[place] = 1
    labels = np.full(shape, IGNORE_LABEL_ID, dtype=np.int32)
    labels.reshape(-1)[place] = np.append(tokens[1:], IGNORE_LABEL_ID)[source]
    labels.reshape(-1)[place_of + ordered - 1] = IGNORE_LABEL_ID  # the end of a document predicts nothing
    return PackedTable(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        row_starts=rows.starts,
        document_lengths=ordered.astype(np.int32),
        document_lines=np.concatenate([part.lines for part in pieces])[order],
        document_pieces=np.concatenate([part.numbers for part in pieces])[order].astype(np.int32),
    )


class ShardWriter:
    """Writes the shards of one split of one source; they get their names all at once, at the end."""

    def __init__(
        self, root: Path, folder: str, source: str, split: Split, rows_per_shard: int, max_length: int
    ) -> None:
        self._root, self._folder, self._source, self._split = root, folder, source, split
        self._max_length, self._limit = max_length, rows_per_shard * max_length
        self._waiting: list[Pieces] = []
        self._waiting_tokens = 0
        self.shards: list[Shard] = []

    def add(self, pieces: Pieces, next_row_id: int, pad_id: int) -> int:
        """Take pieces, write a shard if there are enough for one, and give the number of the next row."""
        if len(pieces.lengths):
            self._waiting.append(pieces)
            self._waiting_tokens += len(pieces.ids)
        return self.flush(next_row_id, pad_id) if self._waiting_tokens >= self._limit else next_row_id

    def flush(self, next_row_id: int, pad_id: int) -> int:
        """Write what waits as one shard."""
        if not self._waiting:
            return next_row_id
        table = pack(self._waiting, self._max_length, pad_id)
        self._waiting, self._waiting_tokens = [], 0
        return self.write(table, next_row_id)

    def write(self, table: PackedTable, next_row_id: int) -> int:
        """Write these rows as the next shard, and give the number of the row after them."""
        unfinished = self._root / self._folder / f"{self._split}-{len(self.shards):05d}.parquet{UNFINISHED}"
        _write_table(unfinished, table, next_row_id)
        sha256 = file_sha256(unfinished)
        name = f"{self._folder}/{self._split}-{len(self.shards):05d}-{sha256[:8]}.parquet"
        rows = len(table.input_ids)
        self.shards.append(
            Shard(
                file=name,
                source=self._source,
                first_row_id=next_row_id,
                rows=rows,
                documents=len(table.document_lengths),
                tokens=int(table.document_lengths.sum()),
                bytes=unfinished.stat().st_size,
                sha256=sha256,
            )
        )
        return next_row_id + rows

    def name_all(self) -> None:
        for shard in self.shards:
            target = self._root / shard.file
            os.replace(target.with_name(f"{target.stem.rpartition('-')[0]}.parquet{UNFINISHED}"), target)


def rows_per_shard(shard_bytes: int, max_length: int) -> int:
    return max(1, int(shard_bytes / (max_length * BYTES_PER_TOKEN)))


def remove_unnamed_shards(output: Path) -> None:
    """Remove what an interrupted run left: shards of ours that the manifest on disk does not name, and unfinished ones."""
    for unfinished in output.glob(f"{MANIFEST_FILE}.*{UNFINISHED}"):
        unfinished.unlink()
    shards = load_manifest(output).shards if (output / MANIFEST_FILE).exists() else []
    named = {output / shard.file for shard in shards}
    for file in list(output.rglob("*.parquet*")):  # before directories are removed
        if OUR_SHARD.fullmatch(file.name) and file not in named:
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()


def _write_table(path: Path, table: PackedTable, first_row_id: int) -> None:
    import_parquet()
    import pyarrow as pa

    rows, length = table.input_ids.shape

    def per_token(values: NDArray[Any]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), length)

    def per_document(values: NDArray[Any]) -> Any:
        return pa.ListArray.from_arrays(pa.array(table.row_starts, type=pa.int32()), pa.array(values))

    content = pa.table(
        {
            "row_id": pa.array(np.arange(first_row_id, first_row_id + rows)),
            "input_ids": per_token(table.input_ids),
            "attention_mask": per_token(table.attention_mask),
            "labels": per_token(table.labels),
            "document_lengths": per_document(table.document_lengths),
            "document_lines": per_document(table.document_lines),
            "document_pieces": per_document(table.document_pieces),
        }
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(
        path,
        content,
        row_group_size=max(1, ROW_GROUP_TOKENS // length),
        compression="snappy",
        use_dictionary=["attention_mask.list.element"],  # a dictionary of ids is larger than the ids
    )


def read_shard(folder: Path, shard: Shard) -> PackedTable:
    """The rows of a whole shard; raises a ValueError if it is not what the manifest says."""
    file = folder / shard.file
    if not file.is_file() or file_sha256(file) != shard.sha256:
        raise ValueError(f"{file} is missing or damaged. Make the part again with --force.")
    table = import_parquet().read_table(file, memory_map=True).combine_chunks()

    def per_token(name: str) -> NDArray[Any]:
        flat: NDArray[Any] = table.column(name).chunk(0).flatten().to_numpy()
        return flat.reshape(table.num_rows, -1)

    lengths = table.column("document_lengths").chunk(0)
    return PackedTable(
        input_ids=per_token("input_ids"),
        attention_mask=per_token("attention_mask"),
        labels=per_token("labels"),
        row_starts=lengths.offsets.to_numpy(),
        document_lengths=lengths.values.to_numpy(),
        document_lines=table.column("document_lines").chunk(0).values.to_numpy(),
        document_pieces=table.column("document_pieces").chunk(0).values.to_numpy(),
    )


def _arange_each(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
