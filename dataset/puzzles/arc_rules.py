"""ARC-like puzzles made here: a puzzle is a simple rule, drawn with its colours and directions, and pairs that follow it."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

from dataset.puzzles.arc_grids import NUM_COLOURS, Pair

BLACK = 0
SMALLEST_SIDE = 3
MOST_COLOURS = 4  # of a puzzle, beside black

Rule = Callable[[np.ndarray], np.ndarray]


def made_pairs(num_pairs: int, largest_side: int, rng: Generator) -> list[Pair]:
    """Different pairs of one rule, whose inputs are of one size, none of which leaves its input as it is."""
    colours = rng.permutation(np.arange(1, NUM_COLOURS))[: rng.integers(2, MOST_COLOURS + 1)]
    rule = RULES[rng.integers(len(RULES))](colours, rng)
    shape = rng.integers(SMALLEST_SIDE, largest_side + 1, size=2)
    pairs: dict[bytes, Pair] = {}
    while len(pairs) < num_pairs:
        grid = _random_grid(colours, shape, rng)
        answer = rule(grid)
        if not np.array_equal(grid, answer):
            pairs[grid.tobytes()] = grid, np.ascontiguousarray(answer)
    return list(pairs.values())


def _random_grid(colours: np.ndarray, shape: np.ndarray, rng: Generator) -> np.ndarray:
    """Black with a few coloured cells, at least one of each colour."""
    grid = np.where(rng.random(shape) < 0.3, rng.choice(colours, size=shape), BLACK).astype(np.uint8)
    cells = rng.choice(grid.size, size=len(colours), replace=False)
    grid.flat[cells] = colours
    return grid


# The rules: each takes the puzzle's colours and draws what it leaves open. All keep the size of the grid but `crop_to`.
def turn(_: np.ndarray, rng: Generator) -> Rule:
    quarters = int(rng.integers(1, 4))
    return lambda grid: np.rot90(grid, quarters)


def mirror(_: np.ndarray, rng: Generator) -> Rule:
    axis = int(rng.integers(2))
    return lambda grid: np.flip(grid, axis)


def shift(_: np.ndarray, rng: Generator) -> Rule:
    """By one cell; what leaves on one side comes in on the other."""
    axis, by = int(rng.integers(2)), int(rng.choice((-1, 1)))
    return lambda grid: np.roll(grid, by, axis)


def swap(colours: np.ndarray, _: Generator) -> Rule:
    table = np.arange(NUM_COLOURS, dtype=np.uint8)
    table[colours[:2]] = colours[1::-1]
    return lambda grid: table[grid]


def erase(colours: np.ndarray, _: Generator) -> Rule:
    return lambda grid: np.where(grid == colours[0], BLACK, grid).astype(np.uint8)


def fill(colours: np.ndarray, _: Generator) -> Rule:
    """What is black takes a colour."""
    return lambda grid: np.where(grid == BLACK, colours[0], grid).astype(np.uint8)


def frame(colours: np.ndarray, _: Generator) -> Rule:
    """The cells at the border take a colour."""

    def framed(grid: np.ndarray) -> np.ndarray:
        framed = np.full_like(grid, colours[0])
        framed[1:-1, 1:-1] = grid[1:-1, 1:-1]
        return framed

    return framed


def fall(_: np.ndarray, rng: Generator) -> Rule:
    """Coloured cells drop to one side, in their order."""
    quarters = int(rng.integers(4))

    def fallen(grid: np.ndarray) -> np.ndarray:
        turned = np.rot90(grid, quarters)
        order = np.argsort(turned != BLACK, axis=0, kind="stable")  # black first
        return np.rot90(np.take_along_axis(turned, order, axis=0), -quarters)

    return fallen


def draw_lines(colours: np.ndarray, rng: Generator) -> Rule:
    """Every cell of a colour becomes a line across the grid."""
    axis = int(rng.integers(2))
    return lambda grid: np.where((grid == colours[0]).any(axis, keepdims=True), colours[0], grid).astype(np.uint8)


def surround(colours: np.ndarray, _: Generator) -> Rule:
    """Black cells beside a cell of one colour take another."""

    def surrounded(grid: np.ndarray) -> np.ndarray:
        marked = np.pad(grid == colours[0], 1)
        beside = marked[:-2, 1:-1] | marked[2:, 1:-1] | marked[1:-1, :-2] | marked[1:-1, 2:]
        return np.where(beside & (grid == BLACK), colours[1], grid).astype(np.uint8)

    return surrounded


def complete(_: np.ndarray, rng: Generator) -> Rule:
    """One half becomes the mirror image of the other."""
    quarters = int(rng.integers(4))

    def completed(grid: np.ndarray) -> np.ndarray:
        turned = np.rot90(grid, quarters).copy()
        half = len(turned) // 2
        turned[len(turned) - half :] = turned[:half][::-1]
        return np.rot90(turned, -quarters)

    return completed


def crop_to(colours: np.ndarray, _: Generator) -> Rule:
    """The smallest rectangle around the cells of a colour."""

    def cropped(grid: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(grid == colours[0])
        return grid[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]

    return cropped


RULES = (turn, mirror, shift, swap, erase, fill, frame, fall, draw_lines, surround, complete, crop_to)


def made_puzzles(count: int, num_pairs: int, largest_side: int, seed: list[int]) -> Iterator[dict[str, list[Pair]]]:
    """`count` puzzles of a seed, each with so many train pairs and, for ten of those, one test pair."""
    num_tests = -(-num_pairs // 10)
    for number in range(count):
        pairs = made_pairs(num_pairs + num_tests, largest_side, np.random.default_rng([*seed, number]))
        yield {"train": pairs[:num_pairs], "test": pairs[num_pairs:]}
