"""ARC grids: their tokens, their hashes, and the augmentation (a symmetry and a renaming of colours) with its inverse."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from dataset.common import dihedral_transform, inverse_dihedral_transform

MAX_GRID_SIZE = 30
NUM_COLOURS = 10
NUM_SYMMETRIES = 8
PAD, EOS, FIRST_COLOUR = 0, 1, 2  # tokens; a grid ends with a row and a column of EOS
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS

NAME_SEPARATOR = "|||"  # <puzzle>|||t<symmetry>|||<new colour of 0, of 1, ...>

Pair = tuple[np.ndarray, np.ndarray]  # input and output grid


@dataclass(frozen=True, slots=True)
class Augmentation:
    symmetry: int  # number of a dihedral transform
    colours: bytes  # new colour of each colour

    def apply(self, grid: np.ndarray) -> np.ndarray:
        return dihedral_transform(np.frombuffer(self.colours, dtype=np.uint8)[grid], self.symmetry)

    def invert(self, grid: np.ndarray) -> np.ndarray:
        old_colours = np.argsort(np.frombuffer(self.colours, dtype=np.uint8)).astype(np.uint8)
        return old_colours[inverse_dihedral_transform(grid, self.symmetry)]

    def name(self, puzzle: str) -> str:
        return NAME_SEPARATOR.join((puzzle, f"t{self.symmetry}", "".join(map(str, self.colours))))


IDENTITY = Augmentation(0, bytes(range(NUM_COLOURS)))


def draw_augmentation(rng: np.random.RandomState) -> Augmentation:
    """A random symmetry and renaming of colours; black stays black. The order of the draws is the reference's."""
    symmetry = int(rng.randint(0, NUM_SYMMETRIES))
    return Augmentation(symmetry, b"\0" + rng.permutation(np.arange(1, NUM_COLOURS, dtype=np.uint8)).tobytes())


def parse_name(name: str) -> tuple[str, Augmentation]:
    """The puzzle that an identifier's name belongs to, and how it was augmented."""
    puzzle, *augmentation = name.split(NAME_SEPARATOR)
    if not augmentation:
        return puzzle, IDENTITY
    symmetry, colours = augmentation
    return puzzle, Augmentation(int(symmetry.removeprefix("t")), bytes(map(int, colours)))


def to_grid(rows: object, where: str) -> np.ndarray:
    """A grid from the lists of a JSON file; `where` names it in the error if it is not one."""
    try:
        grid = np.array(rows)
    except ValueError:  # rows of different lengths
        grid = np.empty(0)
    fits = grid.ndim == 2 and grid.dtype.kind in "iu" and min(grid.shape) >= 1 and max(grid.shape) <= MAX_GRID_SIZE
    if not fits or grid.min() < 0 or grid.max() >= NUM_COLOURS:
        raise ValueError(
            f"{where} is not an ARC grid: expected 1 to {MAX_GRID_SIZE} rows of equal length, of colours 0 to "
            f"{NUM_COLOURS - 1}, but found {str(rows)[:80]}."
        )
    return grid.astype(np.uint8)


def grid_hash(grid: np.ndarray) -> str:
    return shape_and_bytes_hash(grid.shape[0], grid.shape[1], np.ascontiguousarray(grid, dtype=np.uint8).tobytes())


def shape_and_bytes_hash(num_rows: int, num_columns: int, colours: bytes) -> str:
    """`grid_hash` of a grid given row by row."""
    return sha256(bytes((num_rows, num_columns)) + colours).hexdigest()


def pairs_hash(hashes: Iterable[tuple[str, str]]) -> str:
    """One hash for a set of pairs, whatever their order, from the hashes of their grids."""
    return sha256("|".join(sorted(f"{one}|{other}" for one, other in hashes)).encode()).hexdigest()


def to_tokens(grid: np.ndarray, top: int = 0, left: int = 0, field: int = MAX_GRID_SIZE) -> np.ndarray:
    """The tokens of a square field, `field` cells across, with a grid placed at (top, left)."""
    tokens = np.full((field, field), PAD, dtype=np.uint8)
    bottom, right = top + grid.shape[0], left + grid.shape[1]
    tokens[top:bottom, left:right] = grid + FIRST_COLOUR
    if bottom < field:
        tokens[bottom, left:right] = EOS
    if right < field:
        tokens[top:bottom, right] = EOS
    return tokens.ravel()


def field_of(tokens: np.ndarray) -> int:
    """How many cells the field of these rows of tokens is across."""
    return math.isqrt(tokens.shape[-1])


def crop(tokens: np.ndarray) -> list[np.ndarray]:
    """For each row of tokens the largest grid in the upper left corner that holds colours only; maybe empty."""
    field = field_of(tokens)
    squares = tokens.reshape(-1, field, field)
    is_colour = (squares >= FIRST_COLOUR) & (squares < VOCAB_SIZE)
    # A line is as wide as its colours reach without a gap, and no wider than the lines above.
    widths = np.minimum.accumulate(np.logical_and.accumulate(is_colour, axis=2).sum(axis=2), axis=1)
    heights = (widths * np.arange(1, field + 1)).argmax(axis=1) + 1  # of equal areas the flattest
    grids = []
    for square, height, width in zip(squares, heights, widths[np.arange(len(squares)), heights - 1], strict=True):
        grids.append((square[: height if width else 0, :width] - FIRST_COLOUR).astype(np.uint8))
    return grids


def at_corner(tokens: np.ndarray) -> np.ndarray:
    """The tokens of the same grid in the upper left corner, wherever it was placed."""
    field = field_of(tokens)
    square = tokens.reshape(field, field)
    rows, columns = np.nonzero(square >= FIRST_COLOUR)
    if not len(rows) or rows.min() == columns.min() == 0:
        return tokens
    grid = square[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] - FIRST_COLOUR
    return to_tokens(grid.clip(0), field=field).astype(tokens.dtype)
