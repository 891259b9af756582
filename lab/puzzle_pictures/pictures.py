"""Pictures of puzzles being solved: a PNG with a column a supervision step, or a GIF with a frame a step."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset.puzzles.samples import Game
from lab.puzzle_pictures import boards
from lab.puzzle_pictures.boards import INK, MUTED, START, WRONG, View, question_view, solution_view, step_view
from lab.puzzle_pictures.traces import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".gif")
DPI = 150
MAX_COLUMNS = 6  # steps that a PNG shows
BOARDS_ACROSS = 4  # of a GIF
FRAMES_A_SECOND, LAST_FRAMES = 2, 5  # the end is held
HALT = "halt"  # caption of the probability by which the model would stop

# Inches.
MARGIN, GAP, CAPTION = 0.3, 0.24, 0.5
TOP, HEADING = 0.72, 0.28
MIN_WIDTH = 4.4


def save_picture(game: Game, traces: Sequence[Trace], title: str, output: Path) -> None:
    """Draw to a PNG or, if the name ends so, to an animated GIF."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".gif":
        save_animation(game, traces, title, output)
    else:
        draw_steps(game, traces, title).savefig(output, format="png", dpi=DPI)


def draw_steps(game: Game, traces: Sequence[Trace], title: str) -> "Figure":
    """A row a puzzle: the question, the answer after some supervision steps and, if one stayed wrong, the solution."""
    steps = shown_steps(len(traces[0].answers))
    needs_solution = any(trace.num_wrong[-1] for trace in traces)
    sheet = Sheet(game, len(traces), 1 + len(steps) + needs_solution, title)
    headings = ["puzzle", *(f"step {step}" for step in steps), *["solution"] * needs_solution]
    for column, heading in enumerate(headings):
        sheet.write_heading(column, heading)
    for row, trace in enumerate(traces):
        sheet.draw(row, 0, question_view(trace), (f"number {trace.sample.number}", MUTED))
        for column, (before, step) in enumerate(pairwise([0, *steps]), start=1):
            sheet.draw(row, column, step_view(trace, step, before), *captions(trace, step))
        if needs_solution:
            sheet.draw(row, len(steps) + 1, solution_view(trace))
    return sheet.figure


def shown_steps(num_steps: int) -> list[int]:
    """Steps that get a column: of many the early ones more densely, for there most happens, and the last."""
    if num_steps <= MAX_COLUMNS:
        return list(range(1, num_steps + 1))
    return sorted({round(step) for step in np.geomspace(1, num_steps, MAX_COLUMNS).tolist()})


def captions(trace: Trace, step: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """What stands below the answer of a step: (text, colour) for each line."""
    num_wrong = trace.num_wrong[step - 1]
    verdict = (f"{num_wrong} wrong", WRONG) if num_wrong else ("solved", START)
    return verdict, (f"{HALT} {trace.halting[step - 1]:.0%}", MUTED)


def save_animation(game: Game, traces: Sequence[Trace], title: str, output: Path) -> None:
    """A frame with the questions, then one a supervision step; the last one stays for a while."""
    from matplotlib.animation import PillowWriter

    num_steps = len(traces[0].answers)
    frames = [draw_frame(game, traces, title, step) for step in range(num_steps + 1)]
    writer = PillowWriter(fps=FRAMES_A_SECOND)
    with writer.saving(frames[0], str(output), DPI):
        for figure in [*frames, *frames[-1:] * LAST_FRAMES]:
            writer.fig = figure
            writer.grab_frame()


def draw_frame(game: Game, traces: Sequence[Trace], title: str, step: int) -> "Figure":
    """All puzzles side by side after that many supervision steps; 0 shows the questions."""
    across = min(len(traces), BOARDS_ACROSS)
    sheet = Sheet(game, math.ceil(len(traces) / across), across, title)
    sheet.write_heading(0, f"step {step} of {len(traces[0].answers)}" if step else "puzzle")
    for place, trace in enumerate(traces):
        row, column = divmod(place, across)
        if step:
            sheet.draw(row, column, step_view(trace, step, step - 1), *captions(trace, step))
        else:
            sheet.draw(row, column, question_view(trace), (f"number {trace.sample.number}", MUTED))
    return sheet.figure


class Sheet:
    """A figure with rows and columns of boards under a title and a legend."""

    def __init__(self, game: Game, num_rows: int, num_columns: int, title: str) -> None:
        from matplotlib.figure import Figure

        self.game = game
        self.board = board_inches(game)
        self.width = max(MIN_WIDTH, 2 * MARGIN + num_columns * (self.board + GAP) - GAP)
        self.height = TOP + HEADING + num_rows * (self.board + CAPTION) + 0.5 * MARGIN
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")
        self._write(MARGIN, 0.28, title, INK, size=12, weight="bold")
        self._write_legend(MARGIN, 0.47)

    def write_heading(self, column: int, text: str) -> None:
        self._write(self._left(column), TOP + 0.18, text, MUTED, size=9)

    def draw(self, row: int, column: int, view: View, *lines: tuple[str, str]) -> None:
        """A board, and lines of text (with their colours) below it."""
        left, top = self._left(column), TOP + HEADING + row * (self.board + CAPTION)
        bottom = top + self.board
        place = (left / self.width, 1 - bottom / self.height, self.board / self.width, self.board / self.height)
        boards.draw_board(self.figure.add_axes(place), self.game, view, width=72 * self.board)
        for number, (text, colour) in enumerate(lines):
            weight = "normal" if colour == MUTED else "bold"
            self._write(left, bottom + 0.16 + 0.15 * number, text, colour, size=8, weight=weight)

    def _left(self, column: int) -> float:
        return MARGIN + column * (self.board + GAP)

    def _write(self, left: float, baseline: float, text: str, colour: str, size: float, weight: str = "normal") -> None:
        self.figure.text(
            left / self.width, 1 - baseline / self.height, text, color=colour, fontsize=size, fontweight=weight
        )

    def _write_legend(self, left: float, top: float) -> None:
        from matplotlib.artist import Artist
        from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

        words: list[Artist] = [
            TextArea(text, textprops={"color": colour, "size": 8.5}) for text, colour in boards.legend_of(self.game)
        ]
        self.figure.add_artist(
            AnchoredOffsetbox(
                loc="center left",
                child=HPacker(children=words, pad=0, sep=10),
                bbox_to_anchor=(left / self.width, 1 - top / self.height),
                bbox_transform=self.figure.transFigure,
                frameon=False,
                borderpad=0,
                pad=0,
            )
        )


def board_inches(game: Game) -> float:
    per_cell = 0.25 if game.name == "sudoku" else 0.14
    return 2.0 if game.name == "arc" else min(max(per_cell * game.side, 1.2), 3.0)
