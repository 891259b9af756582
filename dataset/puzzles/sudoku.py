"""Sudoku boards of 4x4, 6x6, 9x9 and 16x16 cells: solved, generated, augmented, written, equivalent ones told apart.

A board is a flat array of digits, row by row, 0 where a cell is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import trange

from dataset.files.writer import BOARD_SET, create_array, write_boards
from dataset.puzzles.boards import Boards, Puzzle


@dataclass(frozen=True)
class BoardShape:
    box_rows: int
    box_columns: int

    @property
    def size(self) -> int:
        return self.box_rows * self.box_columns

    @property
    def num_cells(self) -> int:
        return self.size**2

    @property
    def vocab_size(self) -> int:
        return self.size + 2  # padding, empty cell, digits

    @cached_property
    def cells(self) -> list[tuple[int, int, int]]:
        """Row, column and box of every cell."""
        boxes_in_row = self.size // self.box_columns
        return [
            (row, column, row // self.box_rows * boxes_in_row + column // self.box_columns)
            for row in range(self.size)
            for column in range(self.size)
        ]


SHAPES = {"4x4": BoardShape(2, 2), "6x6": BoardShape(2, 3), "9x9": BoardShape(3, 3)}  # that can be made here
ALL_SHAPES = (*SHAPES.values(), BoardShape(4, 4))
SYMBOLS = {".": 0} | {symbol: digit for digit, symbol in enumerate("0123456789ABCDEFG")}


def shape_of(num_cells: int) -> BoardShape:
    for shape in ALL_SHAPES:
        if shape.num_cells == num_cells:
            return shape
    raise ValueError(f"A board of {num_cells} cells; expected 16, 36, 81 or 256 (4x4, 6x6, 9x9 or 16x16).")


def tokens_of(boards: np.ndarray) -> np.ndarray:
    """Boards as the model sees them: 0 is padding, 1 an empty cell, digit d is d + 1."""
    return boards + 1


def solutions(
    board: Sequence[int], shape: BoardShape, limit: int = 2, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Up to `limit` full boards that agree with `board`, in random order if `rng` is given."""
    filled = [int(digit) for digit in board]
    rows, columns, boxes = ([0] * shape.size for _ in range(3))  # digits used, as bits
    for digit, (row, column, box) in zip(filled, shape.cells, strict=True):
        bit = 1 << digit >> 1
        if bit & (rows[row] | columns[column] | boxes[box]):
            return []
        rows[row] |= bit
        columns[column] |= bit
        boxes[box] |= bit
    empty = [index for index, digit in enumerate(filled) if digit == 0]
    cells, every_digit = shape.cells, (1 << shape.size) - 1
    found: list[list[int]] = []

    def search() -> None:
        if not empty:
            found.append(filled.copy())
            return
        fewest, place, choices = shape.size + 1, 0, 0
        for position, index in enumerate(empty):
            row, column, box = cells[index]
            candidates = every_digit & ~(rows[row] | columns[column] | boxes[box])
            count = candidates.bit_count()
            if count < fewest:
                fewest, place, choices = count, position, candidates
                if count <= 1:
                    break
        index = empty[place]
        empty[place] = empty[-1]
        empty.pop()
        row, column, box = cells[index]
        bits = [1 << digit for digit in range(shape.size) if choices >> digit & 1]
        if rng is not None:
            rng.shuffle(bits)
        for bit in bits:
            if len(found) == limit:
                break
            filled[index] = bit.bit_length()
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
            search()
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
        empty.append(index)
        empty[place], empty[-1] = empty[-1], empty[place]

    search()
    return found


def generate_puzzle(shape: BoardShape, clues: tuple[int, int], seed: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """A random puzzle with one solution and its answer, or None if this draw cannot do with that few clues.

    Clues are taken away in random order as long as the solution stays the only one, down to a number drawn from
    `clues` (both ends included).
    """
    rng = np.random.default_rng(seed)
    (answer,) = solutions([0] * shape.num_cells, shape, limit=1, rng=rng)
    board = answer.copy()
    wanted = int(rng.integers(clues[0], clues[1] + 1))
    left = shape.num_cells
    for index in rng.permutation(shape.num_cells):
        if left == wanted:
            break
        board[index] = 0
        if len(solutions(board, shape)) == 1:
            left -= 1
        else:
            board[index] = answer[index]
    if left > clues[1]:
        return None
    return np.array(board, dtype=np.uint8), np.array(answer, dtype=np.uint8)


def augmentation(shape: BoardShape, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw a symmetry of the game: (which cell each cell takes its digit from, new name of each digit).

    The order of the draws is the reference's.
    """
    digits = np.append(0, rng.permutation(np.arange(1, shape.size + 1)))
    cells = np.arange(shape.num_cells).reshape(shape.size, shape.size)
    if shape.box_rows == shape.box_columns and rng.rand() < 0.5:  # else boxes would stand upright
        cells = cells.T
    rows = _line_order(shape.box_rows, shape.size // shape.box_rows, rng)
    columns = _line_order(shape.box_columns, shape.size // shape.box_columns, rng)
    return cells[rows][:, columns].ravel(), digits.astype(np.uint8)


def _line_order(box_lines: int, num_bands: int, rng: np.random.RandomState) -> np.ndarray:
    """Bands in random order, and the lines within each band."""
    return np.concatenate([band * box_lines + rng.permutation(box_lines) for band in rng.permutation(num_bands)])


def renaming_key(board: np.ndarray) -> bytes:
    """Equal for two puzzles that differ only in the names of the digits: digits are numbered by first appearance."""
    names: dict[int, int] = {0: 0}
    return bytes(names.setdefault(int(digit), len(names)) for digit in board)


def symmetry_key(board: np.ndarray, shape: BoardShape, rounds: int = 5) -> int:
    """Equal for all puzzles that a symmetry of the game makes of one another.

    The symmetries are renaming digits, permuting rows within bands and columns within stacks, permuting bands and
    stacks, and transposing where boxes are square. Instead of walking through all forms of a board (3 million for
    9x9), clues and the lines, boxes and digits they share are hashed into each other a few times (colour refinement).
    Seldom, two puzzles that are not equivalent get the same key; then one is left out needlessly.
    """
    size, box_rows, box_columns = shape.size, shape.box_rows, shape.box_columns
    boxes_across = size // box_columns
    upright = int(box_rows != box_columns)  # rows and columns look alike unless boxes tell them apart
    clues = [(int(digit) - 1, *cell) for digit, cell in zip(board, shape.cells, strict=True) if digit]
    cells, digits, boxes = [0] * len(clues), [0] * size, [0] * size
    rows, columns = [0] * size, [upright] * size
    bands, stacks = [0] * (size // box_rows), [upright] * boxes_across
    for _ in range(rounds):
        cells = [
            hash((old, digits[digit], boxes[box], *sorted((rows[row], columns[column]))))
            for old, (digit, row, column, box) in zip(cells, clues, strict=True)
        ]
        members: list[list[list[int]]] = [[[] for _ in range(size)] for _ in range(4)]
        for colour, places in zip(cells, clues, strict=True):
            for kind, place in zip(members, places, strict=True):
                kind[place].append(colour)
        in_digit, in_row, in_column, in_box = ([tuple(sorted(place)) for place in kind] for kind in members)
        digits = [hash((digits[i], in_digit[i])) for i in range(size)]
        rows = [hash((rows[i], bands[i // box_rows], in_row[i])) for i in range(size)]
        columns = [hash((columns[i], stacks[i // box_columns], in_column[i])) for i in range(size)]
        boxes = [
            hash((boxes[i], *sorted((bands[i // boxes_across], stacks[i % boxes_across])), in_box[i]))
            for i in range(size)
        ]
        bands = [hash((bands[i], *sorted(rows[i * box_rows :][:box_rows]))) for i in range(len(bands))]
        stacks = [hash((stacks[i], *sorted(columns[i * box_columns :][:box_columns]))) for i in range(len(stacks))]
    return hash((*sorted(cells), *sorted(digits), *sorted(boxes), *sorted(bands + stacks)))


def sudoku_problem(shape: BoardShape, pair: tuple[np.ndarray, np.ndarray]) -> str | None:
    """What is wrong with a puzzle and its answer, if anything."""
    question, answer = pair
    found = solutions(question.tolist(), shape)
    if not found:
        return "the puzzle has no solution"
    if len(found) > 1:
        return "the puzzle has more than one solution"
    if found[0] != answer.tolist():
        return "the answer does not solve the puzzle"
    return None


def has_repeated_digit(board: Sequence[int], shape: BoardShape) -> bool:
    """Whether a row, column or box holds a digit twice, so that there is no solution."""
    seen = [
        (kind, place, digit)
        for digit, cell in zip(board, shape.cells, strict=True)
        if digit
        for kind, place in enumerate(cell)
    ]
    return len(set(seen)) < len(seen)


def sudoku_candidate(size: str, clues: tuple[int, int], seed: int, number: int) -> Puzzle | None:
    """Puzzle `number` of a seed; None if this draw gives none."""
    shape = SHAPES[size]
    made = generate_puzzle(shape, clues, [seed, number])
    if made is None:
        return None
    return Puzzle(*made, key=renaming_key(made[0]), family=symmetry_key(made[0], shape))


def check_digits(boards: Boards, shape: BoardShape, split: str) -> None:
    """Refuse digits that a board of this size does not have."""
    for what, digits, lowest in (("question", boards.questions, 0), ("answer", boards.answers, 1)):
        bad = ((digits < lowest) | (digits > shape.size)).any(axis=1)
        if bad.any():
            raise ValueError(
                f"{split} puzzles, line {boards.places[bad.argmax()]}: the {what} must hold digits from {lowest} to "
                f"{shape.size} only, for its board has {shape.size}x{shape.size} cells. Correct or remove that line."
            )


def write_sudokus(
    folder: Path, split: str, boards: Boards, shape: BoardShape, num_aug: int, rng: np.random.RandomState
) -> None:
    """Each puzzle and its scrambled copies are one group."""
    copies = 1 + num_aug
    rows = (len(boards) * copies, shape.num_cells)
    inputs, labels = (create_array(folder, split, BOARD_SET, field, rows) for field in ("inputs", "labels"))
    for index in trange(len(boards), desc=f"{split} boards", unit=" puzzles"):
        for copy in range(copies):
            question, answer = boards.questions[index], boards.answers[index]
            if copy > 0:
                cells, digits = augmentation(shape, rng)
                question, answer = digits[question[cells]], digits[answer[cells]]
            inputs[index * copies + copy] = tokens_of(question)
            labels[index * copies + copy] = tokens_of(answer)
    write_boards(folder, split, inputs, labels, shape.vocab_size, group_size=copies)
