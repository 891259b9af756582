"""ARC-like puzzles made here: what their rules do, and what a made puzzle holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.puzzles import arc_rules
from dataset.puzzles.arc_rules import Rule, made_pairs, made_puzzles

GRID = np.array([[0, 1, 0], [2, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("swap", [[0, 2, 0], [1, 0, 0], [0, 0, 2], [0, 0, 0]]),
        ("erase", [[0, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ("fill", [[1, 1, 1], [2, 1, 1], [1, 1, 1], [1, 1, 1]]),
        ("frame", [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]]),
        ("surround", [[2, 1, 2], [2, 2, 2], [0, 2, 1], [0, 0, 2]]),
        ("crop_to", [[1, 0], [0, 0], [0, 1]]),
    ],
)
def test_a_rule_does_what_its_name_says(rule: str, wanted: list[list[int]]) -> None:
    made = getattr(arc_rules, rule)(np.array([1, 2]), np.random.default_rng(0))
    assert made(GRID).tolist() == wanted


def directions(rule: str) -> set[str]:
    drawn: list[Rule] = [getattr(arc_rules, rule)(np.array([1, 2]), np.random.default_rng(seed)) for seed in range(40)]
    return {str(made(GRID).tolist()) for made in drawn}


@pytest.mark.parametrize(
    ("rule", "ways", "one"),
    [
        ("turn", 3, [[0, 0, 0], [1, 0, 0], [0, 0, 2], [0, 1, 0]]),
        ("mirror", 2, [[0, 0, 0], [0, 0, 1], [2, 0, 0], [0, 1, 0]]),
        ("shift", 4, [[0, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0, 1]]),
        ("fall", 4, [[0, 0, 0], [0, 0, 0], [0, 0, 0], [2, 1, 1]]),
        ("draw_lines", 2, [[1, 1, 1], [2, 0, 0], [1, 1, 1], [0, 0, 0]]),
        ("complete", 4, [[0, 1, 0], [2, 0, 0], [2, 0, 0], [0, 1, 0]]),
    ],
)
def test_a_rule_with_a_direction_draws_each_of_them(rule: str, ways: int, one: list[list[int]]) -> None:
    found = directions(rule)
    assert len(found) == ways and str(one) in found


@given(seed=st.integers(0, 2**32 - 1), side=st.integers(3, 30))
def test_made_pairs_differ_change_something_and_fit(seed: int, side: int) -> None:
    pairs = made_pairs(5, side, np.random.default_rng(seed))
    assert len({grid.tobytes() for grid, _ in pairs}) == 5 and len({grid.shape for grid, _ in pairs}) == 1
    for grid, answer in pairs:
        assert not np.array_equal(grid, answer)
        assert grid.dtype == answer.dtype == np.uint8
        assert max(*grid.shape, *answer.shape) <= side and max(grid.max(), answer.max()) <= 9


def test_made_puzzles_are_those_of_their_seed() -> None:
    def written(count: int, seed: int) -> list[str]:
        return [
            str({part: [(one.tolist(), other.tolist()) for one, other in pairs] for part, pairs in puzzle.items()})
            for puzzle in made_puzzles(count, 4, 8, [seed])
        ]

    ten = written(10, 0)
    assert len(set(ten)) == 10
    assert written(3, 0) == ten[:3] and written(3, 1) != ten[:3]
    (puzzle,) = made_puzzles(1, 11, 8, [0])
    assert (len(puzzle["train"]), len(puzzle["test"])) == (11, 2)
