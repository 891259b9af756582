"""Draws one board of Sudoku, a maze or ARC into axes: what is given, what the model said, and what of it is wrong."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dataset.common import IGNORE_LABEL_ID
from dataset.puzzles.arc_grids import crop
from dataset.puzzles.samples import EMPTY_DIGIT, MAZE_TOKENS, Game
from lab.puzzle_pictures.traces import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, PAPER = "#2b2f36", "#767c87", "#c9ced6", "#ffffff"
ANSWER, WRONG = "#1f7396", "#c8553d"
GIVEN_CELL, WRONG_CELL, CHANGED_CELL = "#eceef1", "#f7dbd3", "#fdf0c4"
WALL, START, GOAL = "#3b414b", "#5f9a4a", "#dd9a26"
# The colours in which ARC is usually shown, 0 to 9.
ARC_COLOURS = [
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
]  # fmt: skip


class View(NamedTuple):
    """One board as it is drawn; each field has an entry for every cell."""

    tokens: np.ndarray
    given: np.ndarray  # tokens of the question
    wrong: np.ndarray  # whether to mark the cell
    changed: np.ndarray  # whether the picture before shows another answer


def question_view(trace: Trace) -> View:
    return _unmarked(trace, trace.sample.inputs)


def solution_view(trace: Trace) -> View:
    labels = trace.sample.labels
    return _unmarked(trace, np.where(labels == IGNORE_LABEL_ID, 0, labels))


def _unmarked(trace: Trace, tokens: np.ndarray) -> View:
    nothing = np.zeros(len(tokens), dtype=bool)
    return View(tokens, trace.sample.inputs, nothing, nothing)


def step_view(trace: Trace, step: int, step_before: int) -> View:
    """The answer after supervision step `step`, counted from 1; what differs from `step_before`, if not 0, is marked."""
    answer = trace.answers[step - 1]
    before = trace.answers[step_before - 1] if step_before else answer
    return View(answer, trace.sample.inputs, trace.wrong[step - 1], answer != before)


def legend_of(game: Game) -> list[tuple[str, str]]:
    """What is to be explained: (text, its colour)."""
    if game.name == "sudoku":
        return [("given", INK), ("answer", ANSWER), ("wrong", WRONG), ("changed", GOAL)]
    if game.name == "maze":
        return [("path", ANSWER), ("wrong", WRONG), ("start", START), ("goal", GOAL)]
    return [("x: wrong cell", MUTED)]


def draw_board(axes: "Axes", game: Game, view: View, width: float) -> None:
    """`width` is that of the axes, in points."""
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    match game.name:
        case "sudoku":
            _draw_sudoku(axes, game, view, width / game.side)
        case "maze":
            _draw_maze(axes, game, view, width / game.side)
        case "arc":
            _draw_arc(axes, view, width)


def _draw_sudoku(axes: "Axes", game: Game, view: View, cell_width: float) -> None:
    side = game.side
    _paint(axes, [[_sudoku_cell(view, row * side + column) for column in range(side)] for row in range(side)])
    for cell, token in enumerate(view.tokens.tolist()):
        is_given = view.given[cell] > EMPTY_DIGIT
        colour = WRONG if view.wrong[cell] else INK if is_given else ANSWER
        text = str(token - EMPTY_DIGIT) if token > EMPTY_DIGIT else "–" if view.wrong[cell] else ""
        _write(axes, cell, side, text, colour, 0.56 * cell_width, is_bold=is_given)
    for lines, every in ((axes.hlines, game.box[0]), (axes.vlines, game.box[1])):
        lines(range(side + 1), 0, side, color=LINE, linewidth=0.7, zorder=3)
        lines(range(0, side + 1, every), 0, side, color=INK, linewidth=1.4, zorder=4, capstyle="projecting")


def _sudoku_cell(view: View, cell: int) -> str:
    if view.wrong[cell]:
        return WRONG_CELL
    if view.given[cell] > EMPTY_DIGIT:
        return GIVEN_CELL
    return CHANGED_CELL if view.changed[cell] else PAPER


def _draw_maze(axes: "Axes", game: Game, view: View, cell_width: float) -> None:
    side = game.side
    symbols = [MAZE_TOKENS.get(token, "?") for token in view.tokens.tolist()]
    colours = {"#": WALL, " ": PAPER, "o": ANSWER, "S": START, "G": GOAL, "?": PAPER}
    _paint(axes, [[colours[symbols[row * side + column]] for column in range(side)] for row in range(side)])
    for cell in range(side * side):
        row, column = divmod(cell, side)
        given = MAZE_TOKENS.get(int(view.given[cell]), "?")
        if given in "SG":
            _write(axes, cell, side, given, PAPER, 0.62 * cell_width, is_bold=True)
        if view.wrong[cell] and symbols[cell] == "o":
            axes.fill(*_square(row, column), color=WRONG, linewidth=0)
        elif view.wrong[cell]:
            size = 0.4 * cell_width
            axes.plot(column + 0.5, row + 0.5, "o", ms=size, mfc="none", mec=WRONG, mew=0.13 * cell_width)
    _border(axes, side, side)


def _draw_arc(axes: "Axes", view: View, width: float) -> None:
    (grid,) = crop(view.tokens[None])
    num_rows, num_columns = grid.shape
    if grid.size == 0:
        axes.text(0.5, 0.5, "no grid", ha="center", va="center", fontsize=8, color=MUTED, transform=axes.transAxes)
        return
    _paint(axes, [[ARC_COLOURS[colour] for colour in row] for row in grid.tolist()])
    for place in range(1, num_rows):
        axes.hlines(place, 0, num_columns, color="#555555", linewidth=0.4)
    for place in range(1, num_columns):
        axes.vlines(place, 0, num_rows, color="#555555", linewidth=0.4)
    _border(axes, num_rows, num_columns)
    field = round(len(view.tokens) ** 0.5)
    size = 0.4 * width / max(grid.shape)
    wrong_rows, wrong_columns = np.nonzero(view.wrong.reshape(field, field)[:num_rows, :num_columns])
    for colour, thickness in ((INK, 0.24 * size + 1.2), (PAPER, 0.24 * size)):
        axes.plot(wrong_columns + 0.5, wrong_rows + 0.5, "x", ms=size, mec=colour, mew=thickness)


def _paint(axes: "Axes", colours: list[list[str]]) -> None:
    from matplotlib.colors import to_rgb

    pixels = np.array([[to_rgb(colour) for colour in row] for row in colours])
    num_rows, num_columns = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, num_columns, num_rows, 0), interpolation="nearest")
    margin = 0.012 * max(num_rows, num_columns)  # else the border lines lose half their width
    axes.set_xlim(-margin, num_columns + margin)
    axes.set_ylim(num_rows + margin, -margin)


def _write(axes: "Axes", cell: int, side: int, text: str, colour: str, size: float, is_bold: bool) -> None:
    row, column = divmod(cell, side)
    axes.text(
        column + 0.5,
        row + 0.54,
        text,
        color=colour,
        fontsize=size,
        fontweight="bold" if is_bold else "normal",
        ha="center",
        va="center_baseline",
        zorder=5,
    )


def _square(row: int, column: int) -> tuple[list[int], list[int]]:
    return [column, column + 1, column + 1, column], [row, row, row + 1, row + 1]


def _border(axes: "Axes", num_rows: int, num_columns: int) -> None:
    axes.plot([0, num_columns, num_columns, 0, 0], [0, 0, num_rows, num_rows, 0], color=INK, linewidth=1.0)
