"""Pictures of puzzles being solved: a PNG with a column a supervision step, or a GIF with a frame a step."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset.files.disk import disk_errors
from dataset.puzzles.samples import Game
from engine.tasks.traces import Board, Trace
from lab.drawing import INK, MUTED
from lab.puzzle_pictures.boards import LEGENDS, START, WRONG, draw_board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".gif")
DPI = 150
MAX_COLUMNS = 6  # steps that a PNG shows
BOARDS_ACROSS = 4  # of a GIF
FRAMES_A_SECOND, LAST_FRAMES = 2, 5  # the end is held

# Inches.
MARGIN, GAP, CAPTION, TOP = 0.3, 0.24, 0.5, 1.0
MIN_WIDTH = 4.4


def save_picture(game: Game, traces: Sequence[Trace], title: str, output: Path) -> None:
    """Draw to a PNG or, if the name ends so, to an animated GIF."""
    with disk_errors(output):
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
    for row, trace in enumerate(traces):
        sheet.draw(row, 0, "puzzle", trace.question, number_caption(trace))
        for column, (before, step) in enumerate(pairwise([0, *steps]), start=1):
            sheet.draw(row, column, f"step {step}", trace.answer(step, before), step_captions(trace, step))
        if needs_solution:
            sheet.draw(row, len(steps) + 1, "solution", trace.solution, {})
    return sheet.figure


def shown_steps(num_steps: int) -> list[int]:
    """Steps that get a column: of many the early ones more densely, for there most happens, and the last."""
    if num_steps <= MAX_COLUMNS:
        return list(range(1, num_steps + 1))
    return sorted({round(step) for step in np.geomspace(1, num_steps, MAX_COLUMNS).tolist()})


def number_caption(trace: Trace) -> dict[str, str]:
    """What stands below a question: text -> its colour."""
    return {f"number {trace.sample.number}": MUTED}


def step_captions(trace: Trace, step: int) -> dict[str, str]:
    """What stands below the answer of a step; halt is the probability by which the model would stop there."""
    num_wrong = trace.num_wrong[step - 1]
    verdict = {f"{num_wrong} wrong": WRONG} if num_wrong else {"solved": START}
    return verdict | {f"halt {trace.halting[step - 1]:.0%}": MUTED}


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
    for place, trace in enumerate(traces):
        heading = "" if place else f"step {step} of {len(trace.answers)}" if step else "puzzle"
        board = trace.answer(step, step - 1) if step else trace.question
        captions = step_captions(trace, step) if step else number_caption(trace)
        sheet.draw(*divmod(place, across), heading, board, captions)
    return sheet.figure


class Sheet:
    """A figure with rows and columns of boards under a title and a legend."""

    def __init__(self, game: Game, num_rows: int, num_columns: int, title: str) -> None:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        self.game, self.board = game, board_inches(game)
        right = MARGIN + num_columns * (self.board + GAP) - GAP
        bottom = TOP + num_rows * (self.board + CAPTION) - CAPTION
        width, height = max(MIN_WIDTH, right + MARGIN), bottom + CAPTION + 0.5 * MARGIN
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.grid = self.figure.add_gridspec(
            num_rows,
            num_columns,
            left=MARGIN / width,
            right=right / width,
            top=1 - TOP / height,
            bottom=1 - bottom / height,
            wspace=GAP / self.board,
            hspace=CAPTION / self.board,
        )
        self.figure.text(MARGIN / width, 1 - 0.28 / height, title, color=INK, fontsize=12, fontweight="bold")
        legend = LEGENDS[game.name]
        self.figure.legend(
            [Line2D([], [], linestyle="none")] * len(legend),
            list(legend),
            labelcolor=list(legend.values()),
            loc="upper left",
            bbox_to_anchor=(MARGIN / width, 1 - 0.4 / height),
            ncols=len(legend),
            fontsize=8.5,
            frameon=False,
            handlelength=0,
            handletextpad=0,
            columnspacing=1.2,
            borderpad=0,
            borderaxespad=0,
        )

    def draw(self, row: int, column: int, heading: str, board: Board, captions: dict[str, str]) -> None:
        """A board, in the first row with its heading, and lines of text (with their colours) below it."""
        axes = self.figure.add_subplot(self.grid[row, column])
        draw_board(axes, self.game, board, width=72 * self.board)
        if row == 0:
            axes.set_title(heading, loc="left", color=MUTED, fontsize=9, pad=7)
        for number, (text, colour) in enumerate(captions.items()):
            style: dict[str, Any] = {
                "color": colour,
                "fontsize": 8,
                "fontweight": "normal" if colour == MUTED else "bold",
            }
            place = (0, -12 - 11 * number)
            axes.annotate(text, (0, 0), place, xycoords="axes fraction", textcoords="offset points", **style)


def board_inches(game: Game) -> float:
    per_cell = 0.25 if game.name == "sudoku" else 0.14
    return 2.0 if game.name == "arc" else min(max(per_cell * game.side, 1.2), 3.0)
