"""Packs whole documents into rows of one length, and makes batches of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID, Batch
from dataset.text.token_store import Documents

NO_DOCUMENT = -1  # the document id of padding


@dataclass(frozen=True)
class Rows:
    """Rows of an epoch: row i holds documents[starts[i]:starts[i + 1]]."""

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        return self.documents[self.starts[index] : self.starts[index + 1]]

    def places(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row of each document, in the order of `documents`, and the position where it starts there."""
        own = lengths[self.documents]
        row_of_document = np.repeat(np.arange(len(self)), np.diff(self.starts))
        before = own.cumsum() - own
        return row_of_document, before - before[self.starts[:-1]][row_of_document]

    def reordered(self, order: NDArray[np.int64]) -> "Rows":
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        moved = np.repeat(self.starts[:-1][order] - starts[:-1], sizes)
        return Rows(self.documents[np.arange(len(self.documents)) + moved], starts)


class RowPlanner:
    """Puts every document into exactly one row of `seq_len` positions, whole.

    The shapes of the rows follow from the lengths alone, so every epoch has the same number of rows; which document of
    a length goes where, and the order of rows, are drawn again from (seed, epoch).
    """

    def __init__(self, lengths: NDArray[np.int64], seq_len: int, packing: bool) -> None:
        if len(lengths) and not 0 < lengths.min() <= lengths.max() <= seq_len:
            raise ValueError(
                f"Documents take {lengths.min()} to {lengths.max()} positions, a row has {seq_len}. "
                "Load the data with the same seq_len as the rows."
            )
        self._lengths = lengths
        capacity = min(seq_len, int(lengths.sum()))  # a longer row holds no more, and best_fit takes memory for it
        row_of_slot = best_fit(np.sort(lengths)[::-1], capacity) if packing else np.arange(len(lengths))
        self._slots = np.argsort(row_of_slot, kind="stable")  # slot: rank of a document by falling length
        self._starts = np.searchsorted(row_of_slot[self._slots], np.arange(row_of_slot.max(initial=-1) + 2))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def shuffled(self, seed: int, epoch: int) -> Rows:
        rng = np.random.default_rng([seed, epoch])
        rows = self._fill(rng.permutation(len(self._lengths)))
        return rows.reordered(rng.permutation(len(self)))

    def in_order(self) -> Rows:
        """Documents in order within a row, rows by their first one; without packing simply the documents."""
        rows = self._fill(np.arange(len(self._lengths)))
        row_of_document = np.repeat(np.arange(len(self)), np.diff(rows.starts))
        sorted_rows = Rows(rows.documents[np.lexsort((rows.documents, row_of_document))], rows.starts)
        return sorted_rows.reordered(np.argsort(sorted_rows.documents[rows.starts[:-1]]))

    def _fill(self, candidates: NDArray[np.int64]) -> Rows:
        """Documents of equal length take their slots in the order of `candidates`."""
        by_length = candidates[np.argsort(-self._lengths[candidates], kind="stable")]
        return Rows(by_length[self._slots], self._starts)


def best_fit(falling_lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each document: the fullest one that has room for it, else a new one."""
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set if some row has room for exactly r more
    row_of_document = np.empty(len(falling_lengths), dtype=np.int64)
    num_rows = 0
    for index, length in enumerate(falling_lengths.tolist()):
        enough = rooms >> length << length
        if enough:
            room = (enough & -enough).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        row_of_document[index] = row
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return row_of_document


class DocumentRows(RowPlanner):
    """Documents packed into rows of `seq_len` positions: the rows of a RowDataset."""

    def __init__(self, documents: Documents, seq_len: int, pad_id: int, packing: bool = True) -> None:
        self._documents, self._seq_len, self._pad_id = documents, seq_len, pad_id
        super().__init__(documents.lengths(), seq_len, packing)

    def batch(self, rows: Sequence[NDArray[np.int64]], num_rows: int) -> Batch:
        return fill_batch(self._documents, rows, num_rows, self._seq_len, self._pad_id)

    def check_enough(self, global_batch_size: int, is_test: bool) -> None:
        """Packed, they may still fill fewer rows than a batch has; then its last rows are empty."""
        if not is_test and len(self._documents) < global_batch_size:
            raise ValueError(
                f"No train batches available: {len(self._documents)} examples, global_batch_size={global_batch_size}. "
                "Lower the batch size or add examples."
            )


def fill_batch(store: Documents, rows: Sequence[NDArray[np.int64]], num_rows: int, seq_len: int, pad_id: int) -> Batch:
    """The batch of these rows of documents; rows that are missing stay empty.

    `labels[t]` is the token after `inputs[t]` if that is trained, else IGNORE_LABEL_ID. `positions` restart with every
    document, `documents` numbers them within a row, `is_prompt` marks what comes before the first trained token.
    """
    shape = (num_rows, seq_len)
    inputs = np.full(shape, pad_id, dtype=np.int32)
    labels = np.full(shape, IGNORE_LABEL_ID, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int32)
    documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
    is_prompt = np.zeros(shape, dtype=np.bool_)
    for row, members in enumerate(rows):
        start = 0
        for number, index in enumerate(members.tolist()):
            tokens, is_trained = store.document(index)
            place = slice(start, start + len(tokens) - 1)
            inputs[row, place] = tokens[:-1]
            labels[row, place] = np.where(is_trained[1:], tokens[1:], IGNORE_LABEL_ID)
            positions[row, place] = np.arange(len(tokens) - 1)
            documents[row, place] = number
            is_prompt[row, start : start + int(is_trained.argmax())] = True
            start = place.stop
    arrays = {
        "inputs": inputs,
        "labels": labels,
        "positions": positions,
        "documents": documents,
        "is_prompt": is_prompt,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
