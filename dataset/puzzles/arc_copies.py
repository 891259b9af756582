"""The copies of ARC puzzles, made when they are read from the one row that a compact data set holds of each example."""

from typing import Any

import numpy as np

from dataset.puzzles.arc_grids import NUM_COLOURS, NUM_SYMMETRIES, Augmentation, crop, field_of, to_tokens

# What a compact data set has beside the arrays of every set.
SOURCES, AUGMENTATIONS = "sources", "augmentations"


class Copies:
    """Reads like the array of all examples, (examples, seq_len), of which only the originals are stored."""

    ndim = 2

    def __init__(
        self, stored: np.ndarray, sources: np.ndarray, augmentations: np.ndarray, puzzle_indices: np.ndarray
    ) -> None:
        """`stored` has the original of each example in the upper left corner, `sources` (examples, 3) its row there and
        where the copy's corner is, `augmentations` (puzzles, 1 + colours) each copy's symmetry and its new colours."""
        self.stored, self.dtype = stored, stored.dtype
        self.sources, self.augmentations, self.puzzle_indices = sources, augmentations, puzzle_indices
        self.shape = (len(sources), stored.shape[1])

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        numbers = np.arange(len(self))[chosen]
        rows = np.atleast_1d(numbers)
        owners = np.searchsorted(self.puzzle_indices, rows, side="right") - 1
        found = np.empty((len(rows), self.stored.shape[1]), dtype=self.dtype)
        grids = crop(self.stored[self.sources[rows, 0]])
        for place, (row, owner, grid) in enumerate(zip(rows, owners, grids, strict=True)):
            symmetry, *colours = self.augmentations[owner].tolist()
            _, top, left = self.sources[row].tolist()
            copy = Augmentation(symmetry, bytes(colours)).apply(grid)
            found[place] = to_tokens(copy, top, left, field_of(self.stored))
        return found if np.ndim(numbers) else found[0]


def coded(augmentation: Augmentation) -> list[int]:
    """A row of `augmentations`."""
    return [augmentation.symmetry, *augmentation.colours]


def problem(stored: np.ndarray, sources: np.ndarray, augmentations: np.ndarray, num_puzzles: int) -> str | None:
    """What keeps the copies from being made, if anything."""
    if any(array.dtype.kind not in "iu" for array in (sources, augmentations)):
        return f"hold {sources.dtype} and {augmentations.dtype}; expected integers"
    expected = (len(sources), 3), (num_puzzles, 1 + NUM_COLOURS)
    if (sources.shape, augmentations.shape) != expected:
        return f"are of shape {sources.shape} and {augmentations.shape}; expected {expected[0]} and {expected[1]}"
    limits = (
        (sources[:, :1], len(stored)),
        (sources[:, 1:], field_of(stored)),
        (augmentations[:, :1], NUM_SYMMETRIES),
        (augmentations[:, 1:], NUM_COLOURS),
    )
    for values, limit in limits:
        if values.size and not 0 <= values.min() <= values.max() < limit:
            return f"hold values from {values.min()} to {values.max()}; expected 0 to {limit - 1}"
    return None
