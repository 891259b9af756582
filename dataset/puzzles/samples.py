"""Picks puzzles of a data set to look at, and tells from the metadata what game they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dataset.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from dataset.puzzles import arc_grids, maze, sudoku
from dataset.puzzles.format import PuzzleSet, open_split

EMPTY_DIGIT = 1  # token of an empty cell of a Sudoku; digit d is d + 1
MAZE_TOKENS = {token: symbol for symbol, token in maze.SYMBOLS.items()}


@dataclass(frozen=True)
class Game:
    """What the cells of a board mean."""

    name: Literal["sudoku", "maze", "arc"]
    side: int  # cells across the board; ARC: across the field that its grids lie in
    box: tuple[int, int] = (1, 1)  # Sudoku: rows and columns of a box


@dataclass(frozen=True)
class Sample:
    """One puzzle as the data set holds it."""

    number: int  # of the example, counted over the sets of the split
    inputs: np.ndarray  # (seq_len,) tokens
    labels: np.ndarray  # (seq_len,) tokens, IGNORE_LABEL_ID where there is nothing to answer
    identifier: int


def known_game(metadata: PuzzleDatasetMetadata) -> Game | None:
    """The game whose boards have that many cells and that many tokens, if there is one."""
    found = (metadata.seq_len, metadata.vocab_size)
    side = round(metadata.seq_len**0.5)
    is_square = side**2 == metadata.seq_len
    if is_square and side <= arc_grids.MAX_GRID_SIZE and metadata.vocab_size == arc_grids.VOCAB_SIZE:
        return Game("arc", side)
    for shape in sudoku.ALL_SHAPES:
        if found == (shape.num_cells, shape.vocab_size):
            return Game("sudoku", side, (shape.box_rows, shape.box_columns))
    if is_square and metadata.vocab_size == maze.VOCAB_SIZE:
        return Game("maze", side)
    return None


def game_of(metadata: PuzzleDatasetMetadata, where: str | Path) -> Game:
    """The same; `where` names the data in the error."""
    if (game := known_game(metadata)) is not None:
        return game
    raise ValueError(
        f"{where} holds rows of {metadata.seq_len} cells with {metadata.vocab_size} tokens, which is not a game that can be "
        f"drawn: a Sudoku of 4x4, 6x6, 9x9 or 16x16 cells, a square maze ({maze.VOCAB_SIZE} tokens), or a square "
        f"field of ARC, up to {arc_grids.MAX_GRID_SIZE} cells across ({arc_grids.VOCAB_SIZE} tokens)."
    )


class Samples:
    """The examples of a split, numbered over its sets."""

    def __init__(self, folder: str | Path, split: str = "test") -> None:
        self.split = open_split(folder, split)
        self.sets = list(self.split.sets.values())
        self.first_of_set = np.cumsum([0, *(puzzles.num_examples for puzzles in self.sets)])
        if not len(self):
            raise ValueError(f"The split '{split}' of {folder} holds no puzzles. Rebuild the data set.")

    def __len__(self) -> int:
        return int(self.first_of_set[-1])

    def __getitem__(self, number: int) -> Sample:
        place = int(np.searchsorted(self.first_of_set, number, side="right")) - 1
        row = number - int(self.first_of_set[place])
        return _sample(self.sets[place], row, number, self.split.metadata.ignore_label_id)

    def identifiers(self) -> list[int]:
        """Those that occur, in rising order."""
        found: list[int] = np.unique(np.concatenate([puzzles.puzzle_identifiers for puzzles in self.sets])).tolist()
        return found

    def of(self, identifier: int) -> list[int]:
        """The numbers of the examples that carry it."""
        found: list[int] = []
        for first, puzzles in zip(self.first_of_set.tolist(), self.sets, strict=False):
            for puzzle in np.flatnonzero(puzzles.puzzle_identifiers == identifier).tolist():
                found += range(
                    first + int(puzzles.puzzle_indices[puzzle]), first + int(puzzles.puzzle_indices[puzzle + 1])
                )
        return found


def pick_samples(
    folder: str | Path, count: int | None, seed: int, split: str = "test"
) -> tuple[PuzzleDatasetMetadata, list[Sample]]:
    """`count` puzzles drawn by `seed`, in the order of the data set; all of them if it is None or there are no more."""
    samples = Samples(folder, split)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(samples))[:count])
    return samples.split.metadata, [samples[number] for number in drawn.tolist()]


def _sample(puzzles: PuzzleSet, row: int, number: int, ignore_label_id: int | None) -> Sample:
    owner = int(np.searchsorted(puzzles.puzzle_indices, row, side="right")) - 1
    labels = np.array(puzzles.labels[row], dtype=np.int32)
    if ignore_label_id is not None:
        labels[labels == ignore_label_id] = IGNORE_LABEL_ID
    return Sample(
        number=number,
        inputs=np.array(puzzles.inputs[row], dtype=np.int32),
        labels=labels,
        identifier=int(puzzles.puzzle_identifiers[owner]),
    )
