"""Sudoku boards: exact solving, and equivalence under every symmetry of the game."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.puzzles.sudoku import (
    ALL_SHAPES,
    SHAPES,
    BoardShape,
    augmentation,
    generate_puzzle,
    has_repeated_digit,
    renaming_key,
    shape_of,
    solutions,
    sudoku_problem,
    symmetry_key,
    tokens_of,
)

CLUES = {"4x4": (4, 9), "6x6": (10, 18), "9x9": (24, 36)}
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


def puzzle(size: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    made = (generate_puzzle(SHAPES[size], CLUES[size], [seed, number]) for number in itertools.count())
    return next(pair for pair in made if pair is not None)


def is_full_board(board: np.ndarray, shape: BoardShape) -> bool:
    units: list[list[int]] = [[] for _ in range(3 * shape.size)]
    for digit, (row, column, box) in zip(board, shape.cells, strict=True):
        for kind, place in enumerate((row, column, box)):
            units[kind * shape.size + place].append(int(digit))
    return all(sorted(unit) == list(range(1, shape.size + 1)) for unit in units)


def test_boxes_lie_where_they_should() -> None:
    assert [box for _, _, box in SHAPES["6x6"].cells][:12] == [0, 0, 0, 1, 1, 1] * 2
    assert [box for _, _, box in SHAPES["4x4"].cells] == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2


def test_there_are_288_full_4x4_boards() -> None:
    found = solutions([0] * 16, SHAPES["4x4"], limit=1000)
    assert len(found) == len({tuple(board) for board in found}) == 288
    assert all(is_full_board(np.array(board), SHAPES["4x4"]) for board in found)


def test_hard_puzzle_has_its_one_solution() -> None:
    board = [int(cell) if cell != "." else 0 for cell in HARD]
    (answer,) = solutions(board, SHAPES["9x9"])
    assert is_full_board(np.array(answer), SHAPES["9x9"])
    assert all(clue in (0, digit) for clue, digit in zip(board, answer, strict=True))


def test_contradicting_clues_have_no_solution() -> None:
    assert solutions([1, 1] + [0] * 14, SHAPES["4x4"]) == []


@pytest.mark.parametrize("size", SHAPES)
def test_made_puzzle_has_one_solution_and_the_asked_clues(size: str) -> None:
    low, high = CLUES[size]
    for seed in range(5):
        question, answer = puzzle(size, seed)
        assert solutions(question, SHAPES[size]) == [answer.tolist()]
        assert is_full_board(answer, SHAPES[size])
        assert low <= np.count_nonzero(question) <= high
        assert tokens_of(question).min() == 1 and tokens_of(answer).max() == SHAPES[size].vocab_size - 1


def test_made_puzzles_depend_on_the_seed_only() -> None:
    assert renaming_key(puzzle("9x9", 1)[0]) == renaming_key(puzzle("9x9", 1)[0]) != renaming_key(puzzle("9x9", 2)[0])


@given(size=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 10_000))
def test_augmented_puzzle_is_equivalent_and_solved_by_the_augmented_answer(size: str, seed: int) -> None:
    shape = SHAPES[size]
    question, answer = puzzle(size, seed % 7)
    cells, digits = augmentation(shape, np.random.RandomState(seed))
    assert solutions(digits[question[cells]], shape) == [digits[answer[cells]].tolist()]
    assert symmetry_key(digits[question[cells]], shape) == symmetry_key(question, shape)


@given(seed=st.integers(0, 10_000))
def test_renaming_key_sees_through_renaming_only(seed: int) -> None:
    question, _ = puzzle("6x6", seed % 7)
    digits = np.append(0, np.random.RandomState(seed).permutation(6) + 1)
    assert renaming_key(digits[question]) == renaming_key(question)
    assert renaming_key(question[::-1]) != renaming_key(question)


def test_symmetry_key_tells_4x4_puzzles_apart_as_all_128_forms_do() -> None:
    shape = SHAPES["4x4"]
    in_pairs = list(itertools.product([(0, 1), (1, 0)], repeat=2))
    orders = [[2 * b + line for b in bands for line in pairs[b]] for bands in ((0, 1), (1, 0)) for pairs in in_pairs]
    boards = [np.arange(16).reshape(4, 4), np.arange(16).reshape(4, 4).T]
    forms = [board[rows][:, columns].ravel() for board in boards for rows in orders for columns in orders]
    assert len({form.tobytes() for form in forms}) == 128

    exact_of_key: dict[int, set[bytes]] = {}
    key_of_exact: dict[bytes, int] = {}
    for seed in range(300):
        question, _ = puzzle("4x4", seed)
        exact = min(renaming_key(question[form]) for form in forms)
        key = symmetry_key(question, shape)
        assert key_of_exact.setdefault(exact, key) == key
        exact_of_key.setdefault(key, set()).add(exact)
    assert sum(len(classes) > 1 for classes in exact_of_key.values()) <= 1
    assert 100 < len(exact_of_key) < 300


def test_shape_is_known_by_the_number_of_cells() -> None:
    assert shape_of(36) == SHAPES["6x6"]
    with pytest.raises(ValueError, match="A board of 25 cells; expected 16, 36, 81 or 256"):
        shape_of(25)


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=lambda shape: f"{shape.size}")
def test_a_digit_twice_in_a_line_or_box_is_seen(shape) -> None:
    band = np.arange(shape.size) // shape.box_rows * 0 + np.arange(shape.size)
    starts = band % shape.box_rows * shape.box_columns + band // shape.box_rows
    board = (starts[:, None] + np.arange(shape.size)) % shape.size + 1
    assert not has_repeated_digit(board.ravel().tolist(), shape)
    for other in ((0, 1), (1, 0), (shape.box_rows - 1, shape.box_columns - 1)):
        clash = np.zeros_like(board)
        clash[0, 0] = clash[other] = 1
        assert has_repeated_digit(clash.ravel().tolist(), shape)


def test_problems_are_named() -> None:
    shape = SHAPES["4x4"]
    question, answer = puzzle("4x4", 0)
    assert sudoku_problem(shape, (question, answer)) is None
    assert sudoku_problem(shape, (question, answer[::-1])) == "the answer does not solve the puzzle"
    assert sudoku_problem(shape, (np.zeros(16, dtype=int), answer)) == "the puzzle has more than one solution"
    assert sudoku_problem(shape, (np.ones(16, dtype=int), answer)) == "the puzzle has no solution"
