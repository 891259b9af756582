"""Pictures of puzzles being solved show every board, and mark what is wrong and what changed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.puzzles.arc_grids import to_tokens
from dataset.puzzles.samples import Game, Sample
from engine.tasks.traces import Trace
from lab.puzzle_pictures import boards
from lab.puzzle_pictures.pictures import MAX_COLUMNS, draw_frame, draw_steps, save_picture, shown_steps

matplotlib = pytest.importorskip("matplotlib")

SUDOKU = Game("sudoku", 4, (2, 2))
SOLUTION = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]) + 1
GIVEN = np.where(np.arange(16) % 3 == 0, SOLUTION, 1)


def trace(answers, inputs=GIVEN, labels=SOLUTION, number=5) -> Trace:
    halting = np.linspace(0.1, 0.9, len(answers))
    return Trace(Sample(number, np.asarray(inputs), np.asarray(labels), 0), np.array(answers), halting)


def with_errors(*cells: int) -> np.ndarray:
    """The solution with the next digit in these cells."""
    answer = SOLUTION.copy()
    answer[list(cells)] = (SOLUTION[list(cells)] - 1) % 4 + 2
    return answer


def texts_of(figure) -> list[str]:
    """Title, then the heading and captions of every board."""
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)]
    return found


def colour_at(axes, row, column) -> str:
    (image,) = axes.images
    return matplotlib.colors.to_hex(image.get_array()[row, column])


@given(st.integers(1, 200))
def test_columns_begin_with_the_first_step_and_end_with_the_last(num_steps):
    steps = shown_steps(num_steps)
    assert steps[0] == 1 and steps[-1] == num_steps
    assert steps == sorted(set(steps)) and len(steps) <= MAX_COLUMNS
    assert num_steps > MAX_COLUMNS or steps == list(range(1, num_steps + 1))


def test_a_row_holds_the_puzzle_its_steps_and_a_solution_only_if_one_is_missing():
    solved, failed = trace([with_errors(1, 2), SOLUTION]), trace([SOLUTION, with_errors(1)], number=6)
    one, both = draw_steps(SUDOKU, [solved], "a title"), draw_steps(SUDOKU, [solved, failed], "a title")
    assert len(one.axes) == 3 and len(both.axes) == 8
    texts = texts_of(both)
    assert texts.count("solution") == 1 and "solution" not in texts_of(one)
    assert {"a title", "puzzle", "step 1", "step 2", "number 5", "number 6"} <= set(texts)
    assert [t for t in texts if "wrong" in t or t == "solved"] == ["2 wrong", "solved", "solved", "1 wrong"]
    assert [t for t in texts if t.startswith("halt")] == ["halt 10%", "halt 90%"] * 2


def test_a_sudoku_distinguishes_given_right_and_wrong_digits():
    _, first, second = draw_steps(SUDOKU, [trace([with_errors(1, 2), with_errors(2)])], "t").axes[:3]
    by_cell = {divmod(i, 4): text for i, text in enumerate(first.texts)}
    assert [text.get_text() for text in second.texts[:16]] == [str(t - 1) for t in with_errors(2)]
    assert by_cell[0, 0].get_color() == boards.INK and by_cell[0, 0].get_fontweight() == "bold"
    assert by_cell[0, 1].get_color() == boards.WRONG and colour_at(first, 0, 1) == boards.WRONG_CELL
    assert by_cell[1, 0].get_color() == boards.ANSWER and colour_at(first, 1, 0) == boards.PAPER
    assert colour_at(second, 0, 1) == boards.CHANGED_CELL, "right since this step"
    assert colour_at(second, 0, 2) == boards.WRONG_CELL and colour_at(second, 0, 0) == boards.GIVEN_CELL


def test_changes_are_counted_from_the_picture_before():
    answers = [with_errors(1)] * 8
    answers[5:] = [SOLUTION] * 3  # steps 6 to 8; columns are 1, 2, 3, 5, 8
    *_, before, last = draw_steps(SUDOKU, [trace(answers)], "t").axes
    assert colour_at(before, 0, 1) == boards.WRONG_CELL and colour_at(last, 0, 1) == boards.CHANGED_CELL


def test_an_empty_cell_stays_empty_in_the_puzzle_and_is_a_dash_where_the_model_left_it():
    answer = np.where(np.arange(16) == 1, 1, SOLUTION)
    puzzle, step, _ = draw_steps(SUDOKU, [trace([answer])], "t").axes
    assert puzzle.texts[1].get_text() == "" and step.texts[1].get_text() == "–"


def test_a_maze_shows_right_wrong_and_missed_path_cells():
    solution = np.array([3, 5, 4, 2, 2, 2, 1, 1, 1])  # S o G above an open row and a wall
    question = np.where(solution == 5, 2, solution)
    answer = np.array([3, 2, 4, 5, 2, 2, 1, 1, 1])  # one cell missed, one too many
    game = Game("maze", 3)
    _, wrong, right = draw_steps(game, [trace([answer, solution], question, solution)], "t").axes
    assert colour_at(right, 0, 1) == boards.ANSWER and colour_at(right, 2, 0) == boards.WALL
    assert colour_at(wrong, 1, 0) == boards.WRONG and colour_at(right, 1, 0) == boards.PAPER
    (ring,) = [line for line in wrong.lines if line.get_marker() == "o"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([1.5], [0.5])
    assert [text.get_text() for text in wrong.texts[:2]] == ["S", "G"]
    assert all(len(line.get_xdata()) == 0 for line in right.lines if line.get_marker() == "o")


def test_arc_grids_are_cut_out_and_wrong_cells_crossed():
    solution = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    attempt = np.array([[1, 2, 3], [4, 0, 6]], dtype=np.uint8)
    labels = to_tokens(solution).astype(np.int32)
    labels[labels == 0] = -100
    answers = [to_tokens(attempt), np.zeros(900), to_tokens(solution)]
    _, first, second, last = draw_steps(Game("arc", 30), [trace(answers, to_tokens(solution), labels)], "t").axes
    assert colour_at(first, 0, 2) == boards.ARC_COLOURS[3] and first.images[0].get_array().shape[:2] == (2, 3)
    cross = [line for line in first.lines if line.get_marker() == "x"][-1]
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([1.5], [1.5])
    assert second.texts[0].get_text() == "no grid" and not second.images
    assert all(len(line.get_xdata()) == 0 for line in last.lines if line.get_marker() == "x")


def test_an_animation_has_a_frame_a_step_and_holds_the_last(tmp_path):
    image = pytest.importorskip("PIL.Image")
    traces = [trace([with_errors(1, 2), with_errors(1), SOLUTION], number=n) for n in range(5)]
    save_picture(SUDOKU, traces, "t", tmp_path / "new" / "solving.gif")
    with image.open(tmp_path / "new" / "solving.gif") as gif:
        durations = [gif.seek(number) or gif.info["duration"] for number in range(gif.n_frames)]
    assert len(durations) == 4 and durations[-1] > 3 * durations[0]
    frame = draw_frame(SUDOKU, traces, "t", 2)
    assert len(frame.axes) == 5
    texts = texts_of(frame)
    assert "step 2 of 3" in texts and texts.count("1 wrong") == 5
