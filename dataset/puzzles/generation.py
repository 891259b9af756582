"""Draws distinct puzzles from numbered candidates, in several processes where that pays, with the same result."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import Pool
from typing import TypeVar

import numpy as np
from tqdm import tqdm

MAX_FRUITLESS_DRAWS = 5000  # in a row, before the puzzles are taken to be exhausted
POOL_PAYS_SECONDS = 5.0  # starting processes costs seconds where they are spawned, not forked
WAVE = 64  # items a process is given at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Puzzle:
    question: np.ndarray
    answer: np.ndarray
    key: bytes  # the same for two puzzles that may not both be in one split
    family: Hashable  # the same for two puzzles that may not be in different splits


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_expected: int, num_workers: int
) -> Iterator[Result]:
    """`map` that continues in several processes if the first items took so long that this saves time."""
    items = iter(items)
    started = time.monotonic()
    for item in islice(items, WAVE):
        yield function(item)
    needed = (time.monotonic() - started) / WAVE * num_expected
    if num_workers == 1 or needed < POOL_PAYS_SECONDS:
        yield from map(function, items)
        return
    with Pool(num_workers) as pool:
        while wave := list(islice(items, WAVE * num_workers)):
            yield from pool.imap(function, wave, chunksize=WAVE // 8)


def draw_puzzles(
    candidate: Callable[[int], Puzzle | None], num_train: int, num_test: int, num_workers: int = 1
) -> tuple[list[Puzzle], list[Puzzle]]:
    """Training and test puzzles among candidate(0), candidate(1), ...; no two of different splits are of one family.

    The test puzzles come first and each is of another family, so that a large training set cannot use them up.
    """
    train: list[Puzzle] = []
    test: list[Puzzle] = []
    families: set[Hashable] = set()
    keys: set[bytes] = set()
    fruitless = 0
    wanted = num_train + num_test
    with tqdm(total=wanted, desc="puzzles", unit=" puzzles") as bar:
        candidates = ordered_map(candidate, count(), wanted, num_workers)
        while len(train) + len(test) < wanted:
            puzzle = next(candidates)
            if puzzle is None or puzzle.family in families or puzzle.key in keys:
                fruitless += 1
                if fruitless == MAX_FRUITLESS_DRAWS:
                    raise ValueError(
                        f"Found {len(test)} of {num_test} test and {len(train)} of {num_train} training puzzles; then "
                        f"{fruitless} draws in a row gave no new one. Ask for fewer puzzles, or for larger or less "
                        "special ones."
                    )
                continue
            if len(test) < num_test:
                families.add(puzzle.family)
                test.append(puzzle)
            else:
                keys.add(puzzle.key)
                train.append(puzzle)
            fruitless = 0
            bar.update()
    return train, test


def default_test_count(num_train: int) -> int:
    """A tenth of the training puzzles, at least 100 and at most 1000."""
    return min(1000, max(100, num_train // 10))
