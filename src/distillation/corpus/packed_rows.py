"""The rows of a packed corpus, from memory-mapped shards of which a few row groups are kept unpacked."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID, Batch
from dataset.text.packing import NO_DOCUMENT
from src.distillation.corpus.manifest import Shard, Split, TokenizerFacts, load_manifest
from src.distillation.corpus.parquet import ShardFiles

NO_ROW = -1  # the row id of a row that only fills up the last batch

Row = tuple[int, NDArray[np.int32], NDArray[np.int64]]  # row id, all its ids, the lengths of its documents


class PackedRows:
    """The rows of one split, numbered from 0 in the order of the manifest: the rows of a RowDataset.

    A corpus of another length or tokenizer than the given ones is refused. A shard's checksum is compared when it is
    opened first, with `verify` that of all at once.
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
        shards = facts.shards if facts else []
        read = partial(_read_group, self._length, self.manifest.tokenizer.vocab_size)
        self._files = ShardFiles(folder, shards, read, _damaged)
        for shard in shards if verify else []:
            self._files.check_sum(shard)

    def __len__(self) -> int:
        return len(self._files)

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
            row_id[place], inputs[place], lengths = self._files.row(index)
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


def _read_group(length: int, vocab_size: int, file: Any, group: int) -> list[Row]:
    table = file.read_row_group(group, columns=["row_id", "input_ids", "document_lengths"], use_threads=False)
    row_ids = table.column("row_id").to_pylist()
    ids = table.column("input_ids").combine_chunks().flatten().to_numpy().reshape(-1, length)
    lengths = [np.array(row, dtype=np.int64) for row in table.column("document_lengths").to_pylist()]
    for row_id, row, documents in zip(row_ids, ids, lengths, strict=True):
        if not 0 <= row.min() <= row.max() < vocab_size:
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise ValueError(f"row {row_id} holds the id {wrong}, expected 0 to {vocab_size - 1}")
        if documents.min(initial=0) < 0 or not 0 < documents.sum() <= length:
            raise ValueError(
                f"row {row_id} holds documents of {documents.tolist()} tokens, expected 1 to {length} in all"
            )
    return list(zip(row_ids, ids, lengths, strict=True))


def _damaged(folder: Path, shard: Shard, found: object) -> ValueError:
    return ValueError(
        f"The shard {folder / shard.file} cannot be used: {found}. Make it again from {shard.source}: remove the file and "
        "run data/preprocess_to_parquet.py again with --skip-existing."
    )
