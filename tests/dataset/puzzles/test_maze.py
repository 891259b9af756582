"""Mazes: one shortest path, and what is wrong with a given one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.common import dihedral_transform
from dataset.puzzles.maze import (
    GOAL,
    OPEN,
    PATH,
    START,
    SYMBOLS,
    WALL,
    dihedral_key,
    generate_maze,
    maze_problem,
    side_of,
)


def maze(size: int, seed: int, min_length: int = 1) -> tuple[np.ndarray, np.ndarray]:
    made = (generate_maze(size, min_length, [seed, number]) for number in itertools.count())
    return next(pair for pair in made if pair is not None)


def coded(*lines: str) -> np.ndarray:
    return np.array([SYMBOLS[symbol] for symbol in "".join(lines)], dtype=np.uint8)


def all_paths(cells: np.ndarray, size: int) -> list[int]:
    """Lengths of all ways from S to G that cross no cell twice, by trying every one."""
    goal, lengths = int(np.flatnonzero(cells == GOAL)[0]), []

    def walk(cell: int, seen: frozenset[int]) -> None:
        if cell == goal:
            lengths.append(len(seen) - 1)
            return
        row, column = divmod(cell, size)
        for near_row, near_column in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            near = near_row * size + near_column
            inside = 0 <= near_row < size and 0 <= near_column < size
            if inside and cells[near] != WALL and near not in seen:
                walk(near, seen | {near})

    start = int(np.flatnonzero(cells == START)[0])
    walk(start, frozenset({start}))
    return lengths


@given(size=st.integers(5, 9), seed=st.integers(0, 10_000))
def test_made_maze_has_one_shortest_path_and_it_is_marked(size: int, seed: int) -> None:
    question, answer = maze(size, seed, min_length=size)
    lengths = all_paths(question, size)
    length = int((answer == PATH).sum()) + 1
    assert min(lengths) == length >= size
    assert lengths.count(length) == 1
    assert maze_problem((question, answer)) is None
    np.testing.assert_array_equal(np.where(answer == PATH, OPEN, answer), question)


def test_most_mazes_have_loops() -> None:
    assert sum(len(all_paths(maze(9, seed)[0], 9)) > 1 for seed in range(30)) > 10


def test_made_mazes_depend_on_the_seed_only() -> None:
    assert (maze(11, 1)[0] == maze(11, 1)[0]).all()
    assert (maze(11, 1)[0] != maze(11, 2)[0]).any()


@given(seed=st.integers(0, 10_000), tid=st.integers(0, 7))
def test_dihedral_key_sees_through_turning(seed: int, tid: int) -> None:
    question, _ = maze(6, seed)
    turned = dihedral_transform(question.reshape(6, 6), tid).ravel()
    assert dihedral_key(turned) == dihedral_key(question) != dihedral_key(maze(6, seed + 1)[0])


@pytest.mark.parametrize(
    ("question", "answer", "problem"),
    [
        (("S##", " G ", "###"), ("S##", "oG ", "###"), None),
        (("SG#", "   ", "###"), ("SG#", "   ", "###"), None),
        (("S##", "##G", "###"), ("S##", "##G", "###"), "no way leads from S to G"),
        (("S  ", "  G", "###"), ("Soo", "  G", "###"), "3 shortest paths; expected only one"),
        (("S  ", "# G", "###"), ("Soo", "# G", "###"), "2 shortest paths; expected only one"),
        (("S #", " #G", "   "), ("S #", "o#G", "ooo"), None),
        (("S #", " #G", "   "), ("So#", "o#G", "ooo"), "the marked path is not a shortest one, of 5 moves"),
        (("S #", " #G", "   "), ("So#", "o#G", " oo"), "the marked path is not a shortest one, of 5 moves"),
        (("S #", " G ", "###"), ("S #", " G ", "###"), "the marked path is not a shortest one, of 2 moves"),
        (("S #", " G ", "###"), ("S #", "oG ", "## "), "the answer is not the question with a path marked"),
        (("So#", " G ", "###"), ("So#", "oG ", "###"), "the path is marked in the question"),
        (("S #", " S ", "###"), ("S #", " S ", "###"), "2 starts and 0 goals; expected one S and one G"),
    ],
)
def test_problems_are_named(question: tuple[str, ...], answer: tuple[str, ...], problem: str | None) -> None:
    assert maze_problem((coded(*question), coded(*answer))) == problem


def test_maze_must_be_square() -> None:
    assert side_of(900) == 30
    with pytest.raises(ValueError, match="12 cells"):
        side_of(12)
