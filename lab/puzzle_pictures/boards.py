"""Draws one board of Sudoku, a maze or ARC into axes: what is given, what the model said, and what of it is wrong."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dataset.puzzles.arc_grids import crop
from dataset.puzzles.samples import EMPTY_DIGIT, MAZE_TOKENS, Game
from engine.tasks.traces import Board
from lab.drawing import FAINT, INK, MUTED, PAPER, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANSWER, WRONG = "#1f7396", RED
GIVEN_CELL, WRONG_CELL, CHANGED_CELL = "#eceef1", "#f7dbd3", "#fdf0c4"
WALL, START, GOAL = "#3b414b", "#5f9a4a", "#dd9a26"
MAZE_COLOURS = {"#": WALL, " ": PAPER, "o": ANSWER, "S": START, "G": GOAL, "?": PAPER}
# The colours in which ARC is usually shown, 0 to 9.
ARC_COLOURS = [
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
]  # fmt: skip

# What is to be explained of a game: text -> its colour.
LEGENDS = {
    "sudoku": {"given": INK, "answer": ANSWER, "wrong": WRONG, "changed": GOAL},
    "maze": {"path": ANSWER, "wrong": WRONG, "start": START, "goal": GOAL},
    "arc": {"x: wrong cell": MUTED},
}


def draw_board(axes: "Axes", game: Game, board: Board, width: float) -> None:
    """`width` is that of the axes, in points."""
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    draw = {"sudoku": _draw_sudoku, "maze": _draw_maze, "arc": _draw_arc}[game.name]
    draw(axes, game, board, width)


def _draw_sudoku(axes: "Axes", game: Game, board: Board, width: float) -> None:
    side, is_given = game.side, board.given > EMPTY_DIGIT
    cells = np.select([board.wrong, is_given, board.changed], [WRONG_CELL, GIVEN_CELL, CHANGED_CELL], PAPER)
    _paint(axes, cells.reshape(side, side))
    for cell, token in enumerate(board.tokens.tolist()):
        colour = WRONG if board.wrong[cell] else INK if is_given[cell] else ANSWER
        text = str(token - EMPTY_DIGIT) if token > EMPTY_DIGIT else "–" if board.wrong[cell] else ""
        _write(axes, divmod(cell, side), text, colour, 0.56 * width / side, "bold" if is_given[cell] else "normal")
    for lines, every in ((axes.hlines, game.box[0]), (axes.vlines, game.box[1])):
        lines(range(side + 1), 0, side, color=FAINT, linewidth=0.7, zorder=3)
        lines(range(0, side + 1, every), 0, side, color=INK, linewidth=1.4, zorder=4, capstyle="projecting")


def _draw_maze(axes: "Axes", game: Game, board: Board, width: float) -> None:
    side, cell_width = game.side, width / game.side
    symbols, given = (
        np.array([MAZE_TOKENS.get(token, "?") for token in tokens.tolist()]) for tokens in (board.tokens, board.given)
    )
    is_path = symbols == "o"
    colours = np.array([MAZE_COLOURS[symbol] for symbol in symbols])
    _paint(axes, np.where(board.wrong & is_path, WRONG, colours).reshape(side, side))
    for cell in np.flatnonzero((given == "S") | (given == "G")).tolist():
        _write(axes, divmod(cell, side), given[cell], PAPER, 0.62 * cell_width, "bold")
    rows, columns = np.divmod(np.flatnonzero(board.wrong & ~is_path), side)
    axes.plot(columns + 0.5, rows + 0.5, "o", ms=0.4 * cell_width, mfc="none", mec=WRONG, mew=0.13 * cell_width)
    _border(axes, side, side)


def _draw_arc(axes: "Axes", game: Game, board: Board, width: float) -> None:
    (grid,) = crop(board.tokens[None])
    num_rows, num_columns = grid.shape
    if grid.size == 0:
        axes.text(0.5, 0.5, "no grid", ha="center", va="center", fontsize=8, color=MUTED, transform=axes.transAxes)
        return
    _paint(axes, np.array(ARC_COLOURS)[grid])
    axes.hlines(range(1, num_rows), 0, num_columns, color="#555555", linewidth=0.4)
    axes.vlines(range(1, num_columns), 0, num_rows, color="#555555", linewidth=0.4)
    _border(axes, num_rows, num_columns)
    size = 0.4 * width / max(grid.shape)
    rows, columns = np.nonzero(board.wrong.reshape(game.side, game.side)[:num_rows, :num_columns])
    for colour, thickness in ((INK, 0.24 * size + 1.2), (PAPER, 0.24 * size)):
        axes.plot(columns + 0.5, rows + 0.5, "x", ms=size, mec=colour, mew=thickness)


def _paint(axes: "Axes", colours: np.ndarray) -> None:
    """Fill the cells with these colours, (rows, columns) of text."""
    from matplotlib.colors import to_rgba_array

    num_rows, num_columns = colours.shape
    pixels = to_rgba_array(colours.ravel()).reshape(num_rows, num_columns, 4)
    axes.imshow(pixels, extent=(0, num_columns, num_rows, 0), interpolation="nearest")
    margin = 0.012 * max(num_rows, num_columns)  # else the border lines lose half their width
    axes.set_xlim(-margin, num_columns + margin)
    axes.set_ylim(num_rows + margin, -margin)


def _write(axes: "Axes", place: tuple[int, int], text: str, colour: str, size: float, weight: str) -> None:
    """Text in the middle of the cell at this row and column."""
    style: dict[str, Any] = {
        "color": colour,
        "fontsize": size,
        "fontweight": weight,
        "ha": "center",
        "va": "center_baseline",
    }
    axes.text(place[1] + 0.5, place[0] + 0.54, text, zorder=5, **style)


def _border(axes: "Axes", num_rows: int, num_columns: int) -> None:
    axes.plot([0, num_columns, num_columns, 0, 0], [0, 0, num_rows, num_rows, 0], color=INK, linewidth=1.0)
