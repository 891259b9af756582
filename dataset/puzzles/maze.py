"""Square mazes: generating ones with a single shortest path, and checking given ones.

A maze is a flat array of cells, row by row, coded by `SYMBOLS`.
"""

import numpy as np

from dataset.common import dihedral_transform
from dataset.puzzles.boards import Puzzle

WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5
SYMBOLS = {"#": WALL, " ": OPEN, "S": START, "G": GOAL, "o": PATH}
VOCAB_SIZE = 6  # 0 is padding
NUM_LOOPS_DIVISOR = 8  # one wall in addition is opened for that many corridor crossings


def side_of(num_cells: int) -> int:
    side = round(num_cells**0.5)
    if side * side != num_cells:
        raise ValueError(f"A maze of {num_cells} cells is not square; expected 900 for 30x30, for example.")
    return side


def generate_maze(size: int, min_length: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """A maze of size x size cells and its answer, with exactly one shortest path of at least `min_length` moves.

    None if this draw has no such path. Corridors form a tree to which a few loops are added.
    """
    rng = np.random.default_rng(seed)
    maze = _corridors(size, rng)
    open_cells = np.flatnonzero(maze == OPEN)
    start = int(rng.choice(open_cells))
    distance, num_paths = shortest_paths(maze, size, start)
    goals = [cell for cell in open_cells if distance[cell] >= min_length and num_paths[cell] == 1]
    if not goals:
        return None
    maze[start], maze[int(rng.choice(goals))] = START, GOAL
    return maze, answer_of(maze)


def _corridors(size: int, rng: np.random.Generator) -> np.ndarray:
    """Crossings on every other row and column, joined to a tree by a random depth-first walk, then a few loops."""
    maze = np.full((size, size), WALL, dtype=np.uint8)
    first_row, first_column = rng.integers(0, 2, size=2)  # with or without a wall at the upper and left border
    crossings = [(row, column) for row in range(first_row, size, 2) for column in range(first_column, size, 2)]
    stack = [crossings[rng.integers(len(crossings))]]
    maze[stack[0]] = OPEN
    while stack:
        row, column = stack[-1]
        ways = [
            (row + down, column + right)
            for down, right in ((2, 0), (-2, 0), (0, 2), (0, -2))
            if 0 <= row + down < size and 0 <= column + right < size and maze[row + down, column + right] == WALL
        ]
        if not ways:
            stack.pop()
            continue
        to_row, to_column = ways[rng.integers(len(ways))]
        maze[(row + to_row) // 2, (column + to_column) // 2] = OPEN
        maze[to_row, to_column] = OPEN
        stack.append((to_row, to_column))
    walls = [(r + 1, c) for r, c in crossings if r + 2 < size] + [(r, c + 1) for r, c in crossings if c + 2 < size]
    closed = [wall for wall in walls if maze[wall] == WALL]
    for index in rng.permutation(len(closed))[: len(crossings) // NUM_LOOPS_DIVISOR]:
        maze[closed[index]] = OPEN
    return maze.ravel()


def shortest_paths(maze: np.ndarray, size: int, start: int) -> tuple[list[int], list[int]]:
    """For each cell the number of moves from `start` (-1: out of reach) and the number of ways to do with that few."""
    distance, num_paths = [-1] * len(maze), [0] * len(maze)
    distance[start], num_paths[start] = 0, 1
    queue = [start]
    for cell in queue:
        for near in _neighbours(cell, size):
            if maze[near] == WALL:
                continue
            if distance[near] == -1:
                distance[near] = distance[cell] + 1
                queue.append(near)
            if distance[near] == distance[cell] + 1:
                num_paths[near] += num_paths[cell]
    return distance, num_paths


def answer_of(maze: np.ndarray) -> np.ndarray:
    """A maze that has an answer with a shortest path marked, of several any."""
    (start,), (goal,) = _ends(maze)
    size = side_of(len(maze))
    distance, _ = shortest_paths(maze, size, start)
    answer = maze.copy()
    cell = goal
    while distance[cell] > 1:
        cell = next(near for near in _neighbours(cell, size) if distance[near] == distance[cell] - 1)
        answer[cell] = PATH
    return answer


def maze_problem(pair: tuple[np.ndarray, np.ndarray]) -> str | None:
    """What is wrong with a maze and its answer, if anything; the maze must have no other shortest path."""
    maze, answer = pair
    problem = question_problem(maze)
    if problem is not None:
        return problem
    if not np.array_equal(np.where(answer == PATH, OPEN, answer), maze):
        return "the answer is not the question with a path marked"
    (start,), (goal,) = _ends(maze)
    distance, num_paths = shortest_paths(maze, side_of(len(maze)), start)
    is_another = num_paths[goal] == 1 and not np.array_equal(answer, answer_of(maze))
    if (answer == PATH).sum() != distance[goal] - 1 or is_another:
        return f"the marked path is not a shortest one, of {distance[goal]} moves"
    return None if num_paths[goal] == 1 else f"{num_paths[goal]} shortest paths; expected only one"


def question_problem(maze: np.ndarray) -> str | None:
    """Why a maze has no answer, if it has none."""
    starts, goals = _ends(maze)
    if len(starts) != 1 or len(goals) != 1:
        return f"{len(starts)} starts and {len(goals)} goals; expected one S and one G"
    if (maze == PATH).any():
        return "the path is marked in the question"
    if shortest_paths(maze, side_of(len(maze)), starts[0])[0][goals[0]] == -1:
        return "no way leads from S to G"
    return None


def _ends(maze: np.ndarray) -> tuple[list[int], list[int]]:
    """Where S and G are."""
    return np.flatnonzero(maze == START).tolist(), np.flatnonzero(maze == GOAL).tolist()


def dihedral_key(maze: np.ndarray) -> bytes:
    """Equal for a maze and its rotations and reflections."""
    size = side_of(len(maze))
    return min(dihedral_transform(maze.reshape(size, size), tid).tobytes() for tid in range(8))


def maze_candidate(size: int, min_length: int, seed: int, number: int) -> Puzzle | None:
    """Maze `number` of a seed; None if this draw gives none."""
    made = generate_maze(size, min_length, [seed, number])
    if made is None:
        return None
    key = dihedral_key(made[0])
    return Puzzle(*made, key=key, family=key)


def transformed(mazes: np.ndarray, side: int, copies: int) -> np.ndarray:
    """The first `copies` symmetries of each maze, one after the other."""
    grids = mazes.reshape(-1, side, side)
    turned = [[dihedral_transform(grid, tid).ravel() for tid in range(copies)] for grid in grids]
    return np.array(turned, dtype=np.uint8).reshape(-1, side * side)


def _neighbours(cell: int, size: int) -> list[int]:
    row, column = divmod(cell, size)
    return [
        cell + step
        for step, inside in ((-size, row > 0), (size, row < size - 1), (-1, column > 0), (1, column < size - 1))
        if inside
    ]
