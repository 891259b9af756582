"""Picks test puzzles of a data set to look at, and tells from the metadata what game they are."""

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


def game_of(metadata: PuzzleDatasetMetadata, where: str | Path) -> Game:
    """The game whose boards have that many cells and that many tokens; `where` names the data in the error."""
    found = (metadata.seq_len, metadata.vocab_size)
    side = round(metadata.seq_len**0.5)
    if found == (arc_grids.SEQ_LEN, arc_grids.VOCAB_SIZE):
        return Game("arc", side)
    for shape in sudoku.SHAPES.values():
        if found == (shape.num_cells, shape.vocab_size):
            return Game("sudoku", side, (shape.box_rows, shape.box_columns))
    if side**2 == metadata.seq_len and metadata.vocab_size == maze.VOCAB_SIZE:
        return Game("maze", side)
    raise ValueError(
        f"{where} holds rows of {found[0]} cells with {found[1]} tokens, which is not a game that can be drawn: a Sudoku "
        f"of 4x4, 6x6 or 9x9 cells, a square maze ({maze.VOCAB_SIZE} tokens), or ARC ({arc_grids.SEQ_LEN} cells, "
        f"{arc_grids.VOCAB_SIZE} tokens)."
    )


def pick_samples(
    folder: str | Path, count: int, seed: int, split: str = "test"
) -> tuple[PuzzleDatasetMetadata, list[Sample]]:
    """`count` puzzles drawn by `seed`, in the order of the data set; all of them if there are no more."""
    opened = open_split(folder, split)
    sizes = [puzzles.num_examples for puzzles in opened.sets.values()]
    if not sum(sizes):
        raise ValueError(f"The split '{split}' of {folder} holds no puzzles. Rebuild the data set.")
    drawn = np.sort(np.random.default_rng(seed).permutation(sum(sizes))[:count])
    first_of_set = np.cumsum([0, *sizes])
    sets = list(opened.sets.values())
    samples = []
    for number in drawn.tolist():
        place = int(np.searchsorted(first_of_set, number, side="right")) - 1
        row = number - int(first_of_set[place])
        samples.append(_sample(sets[place], row, number, opened.metadata.ignore_label_id))
    return opened.metadata, samples


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
