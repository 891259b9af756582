"""Drawing puzzles: distinct, no family in two splits, the same with any number of processes."""

from functools import partial

import numpy as np
import pytest

import dataset.puzzles.generation
from dataset.puzzles.generation import Puzzle, default_test_count, draw_puzzles, ordered_map


def numbered(modulus: int, number: int) -> Puzzle | None:
    """Every third draw fails; `modulus` different puzzles exist, ten to a family."""
    value = number * 7 % modulus
    if number % 3 == 0:
        return None
    return Puzzle(np.array([value]), np.array([value]), key=str(value).encode(), family=value // 10)


def values(puzzles: list[Puzzle]) -> list[int]:
    return [int(puzzle.question[0]) for puzzle in puzzles]


def test_splits_are_distinct_and_share_no_family() -> None:
    train, test = draw_puzzles(partial(numbered, 1000), num_train=300, num_test=40)
    assert len(train) == len(set(values(train))) == 300
    assert len(test) == len({value // 10 for value in values(test)}) == 40
    assert not {value // 10 for value in values(test)} & {value // 10 for value in values(train)}


def test_exhaustion_is_an_error_that_counts() -> None:
    with pytest.raises(ValueError, match="5 of 5 test and 50 of 60 training.* 5000 draws"):
        draw_puzzles(partial(numbered, 100), num_train=60, num_test=5)


def test_processes_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(map(partial(numbered, 1000), range(500)))
    monkeypatch.setattr(dataset.puzzles.generation, "POOL_PAYS_SECONDS", 0.0)
    shared = list(ordered_map(partial(numbered, 1000), range(500), 500, num_workers=2))
    assert [p and p.key for p in shared] == [p and p.key for p in alone]
    assert values(draw_puzzles(partial(numbered, 1000), 200, 20, num_workers=2)[0]) == values(
        draw_puzzles(partial(numbered, 1000), 200, 20)[0]
    )


@pytest.mark.parametrize(("num_train", "num_test"), [(10, 100), (5000, 500), (10**6, 1000)])
def test_default_test_count_stays_sensible(num_train: int, num_test: int) -> None:
    assert default_test_count(num_train) == num_test
