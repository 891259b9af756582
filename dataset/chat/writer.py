"""Lays documents out in rows and writes them in the on-disk format, in little memory whatever their number."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.chat.reader import PLACES_FILE, ChatMetadata
from dataset.files.writer import BOARD_SET, write_split
from dataset.puzzles.format import PuzzleSet
from dataset.text.packing import RowPlanner, Rows, fill_batch
from dataset.text.token_store import SpooledDocuments

BLOCK_POSITIONS = 1 << 18  # of rows that are made at a time


def write_conversations(folder: Path, split: str, spool: SpooledDocuments, metadata: ChatMetadata) -> int:
    """Write the rows of a split and say how many; several documents share one if `metadata.chat.is_packed`."""
    seq_len, pad_id = metadata.seq_len, metadata.pad_id
    rows = RowPlanner(spool.lengths(), seq_len, metadata.chat.is_packed).in_order()
    dtypes = {"inputs": np.dtype(np.min_scalar_type(metadata.vocab_size - 1)), "labels": np.dtype(np.int32)}
    if metadata.chat.is_packed:
        dtypes["documents"] = np.dtype(np.min_scalar_type(-seq_len))
    (folder / split).mkdir()
    _check_room(folder, len(rows) * seq_len * sum(dtype.itemsize for dtype in dtypes.values()))
    files = {name: folder / split / f"{BOARD_SET}__{name}.npy" for name in dtypes}
    for name, file in files.items():
        with open(file, "wb") as out:
            shape = {"fortran_order": False, "shape": (len(rows), seq_len)}
            np.lib.format.write_array_header_1_0(out, shape | {"descr": np.lib.format.dtype_to_descr(dtypes[name])})
    step = max(1, BLOCK_POSITIONS // seq_len)
    for first in range(0, len(rows), step):
        block = [rows[index] for index in range(first, min(first + step, len(rows)))]
        batch = fill_batch(spool, block, len(block), seq_len, pad_id)
        for name, file in files.items():
            with open(file, "ab") as out:  # not through a memory map: what it holds would count as ours
                out.write(batch[name].numpy().astype(dtypes[name]).tobytes())
    np.save(folder / split / PLACES_FILE, _places(rows, spool.lengths()), allow_pickle=False)
    write_split(
        folder,
        split,
        metadata.model_copy(update={"total_groups": len(rows), "total_puzzles": len(rows)}),
        {
            BOARD_SET: PuzzleSet(
                inputs=np.load(files["inputs"], mmap_mode="r+", allow_pickle=False),
                labels=np.load(files["labels"], mmap_mode="r+", allow_pickle=False),
                puzzle_identifiers=np.zeros(len(rows), dtype=np.int32),
                puzzle_indices=np.arange(len(rows) + 1, dtype=np.int32),
                group_indices=np.arange(len(rows) + 1, dtype=np.int32),
            )
        },
    )
    return len(rows)


def _places(rows: Rows, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """(documents, 3): row, start and stop of each document, in the order of the rows."""
    row_of_document, starts = rows.places(lengths)
    return np.stack([row_of_document, starts, starts + lengths[rows.documents]], axis=1).astype(np.int32)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"The rows need {needed / 1e6:,.1f} MB, but the disk of {folder.parent} has {free / 1e6:,.1f} MB free. "
            "Use --pack, a smaller --max-length, or another disk."
        )
