"""The contract between data and all else: batch types, metadata of a data set, symmetries of a grid, hashes that give seeds."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    import torch

IGNORE_LABEL_ID = -100  # a label with this value takes no part in loss or metrics

Batch = dict[str, "torch.Tensor"]  # inputs, labels, puzzle_identifiers: int32; the first dimension is the row
LoaderItem = tuple[str, Batch, int]  # name of the set, this rank's batch, number of real rows over all ranks

# Number of the transform that undoes transform i: only the quarter turns are not their own inverse.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


class PuzzleDatasetMetadata(BaseModel):
    """What `<split>/dataset.json` says about the arrays beside it."""

    pad_id: int = Field(ge=0)  # token of the inputs where a row is padded
    ignore_label_id: int | None  # stored labels with this value become IGNORE_LABEL_ID; None: keep all
    blank_identifier_id: int = Field(ge=0)  # the puzzle identifier that means "none"
    vocab_size: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    num_puzzle_identifiers: int = Field(ge=1)  # the blank one included
    total_groups: int = Field(ge=0)  # an epoch visits each group once
    mean_puzzle_examples: float = Field(ge=0)
    total_puzzles: int = Field(ge=0)
    sets: list[str]


def text_metadata(seq_len: int, vocab_size: int, pad_id: int) -> PuzzleDatasetMetadata:
    """What a model has to know of text, in the terms that models are built from."""
    return PuzzleDatasetMetadata(
        pad_id=pad_id,
        ignore_label_id=None,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1,
        total_puzzles=1,
        sets=["train"],
    )


def dihedral_transform(arr: np.ndarray, tid: int) -> np.ndarray:
    """Apply symmetry number `tid` of the square (0..7) to the two dimensions of `arr`."""
    match tid:
        case 0:
            return arr
        case 1 | 2 | 3:
            return np.rot90(arr, k=tid)  # counter-clockwise
        case 4:
            return np.fliplr(arr)
        case 5:
            return np.flipud(arr)
        case 6:
            return arr.T
        case 7:
            return np.fliplr(np.rot90(arr, k=1))
    raise ValueError(f"Unknown dihedral transform {tid}; there are eight of them, 0 to 7.")


def inverse_dihedral_transform(arr: np.ndarray, tid: int) -> np.ndarray:
    """Undo `dihedral_transform(arr, tid)`."""
    if not 0 <= tid < len(DIHEDRAL_INVERSE):
        raise ValueError(f"Unknown dihedral transform {tid}; there are eight of them, 0 to 7.")
    return dihedral_transform(arr, DIHEDRAL_INVERSE[tid])


def hash_seed(seed: int, number: int) -> int:
    """A seed for one step (or row) of a run; neighbouring steps and runs get unrelated ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) & 0x7FFFFFFFFFFFFFFF


def mix_bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The mixing function of SplitMix64: every bit of a result depends on every bit of its value."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
