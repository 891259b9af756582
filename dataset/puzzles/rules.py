"""The rules of the games: whether a puzzle has an answer, and whether answers solve it, be they those of the data set or others.

B rows, S cells; `Rule.is_kept` makes no host wait for a device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.puzzles import maze, sudoku
from dataset.puzzles.samples import EMPTY_DIGIT, Game


class Rule(NamedTuple):
    """What a game asks of an answer."""

    metric: str  # name of the share of answers that keep it
    is_kept: Callable[[Tensor, Tensor, Tensor], Tensor]  # questions, right answers and given ones (B, S) -> (B,)


def rule_of(game: Game | None) -> Rule | None:
    """None where only its author knows what is right, as in ARC."""
    if game is None or game.name == "arc":
        return None
    if game.name == "sudoku":
        return Rule("valid_boards", lambda questions, _, answers: are_valid_boards(game, questions, answers))
    return Rule("valid_shortest", are_shortest_paths)


def question_problem(game: Game, inputs: np.ndarray) -> str | None:
    """Why a puzzle has no answer, where its game shows that."""
    if game.name == "maze":
        return maze.question_problem(inputs)
    if game.name == "sudoku":
        digits = (inputs.astype(np.int64) - EMPTY_DIGIT).clip(0)  # padding is no digit
        if sudoku.has_repeated_digit(digits.tolist(), sudoku.shape_of(len(inputs))):
            return "a row, column or box holds a digit twice"
    return None


def is_solution(game: Game, inputs: np.ndarray, answer: np.ndarray) -> bool | None:
    """Whether one answer keeps the rule of its game; None where there is none."""
    rule = rule_of(game)
    if rule is None:
        return None
    if question_problem(game, inputs) is not None:
        return False
    right = maze.answer_of(inputs) if game.name == "maze" else answer
    boards = (torch.from_numpy(board)[None] for board in (inputs, right, answer))
    return bool(rule.is_kept(*boards))


def are_valid_boards(game: Game, questions: Tensor, answers: Tensor) -> Tensor:
    """Which answers keep all clues and have every digit once in each row, column and box."""
    side, (height, width) = game.side, game.box
    digits = torch.arange(side, device=answers.device) + EMPTY_DIGIT + 1
    marks = (answers.unsqueeze(-1) == digits).view(-1, side, side, side)  # (B, row, column, digit)
    boxes = marks.view(-1, side // height, height, side // width, width, side)
    times = torch.stack((marks.sum(2), marks.sum(1), boxes.sum((2, 4)).view(-1, side, side)))
    keeps_clues = ((questions == answers) | (questions <= EMPTY_DIGIT)).all(-1)
    return keeps_clues & (times == 1).all(0).flatten(1).all(1)


def are_shortest_paths(questions: Tensor, right: Tensor, answers: Tensor) -> Tensor:
    """Which answers are the maze with a path from S to G marked that is as short as the right one, a shortest path."""
    side = round(questions.shape[-1] ** 0.5)
    is_end = (questions == maze.START) | (questions == maze.GOAL)
    is_path = answers == maze.PATH
    is_marked = is_path | is_end
    around = F.pad(is_marked.view(-1, side, side).int(), (1, 1, 1, 1))
    near = around[:, :-2, 1:-1] + around[:, 2:, 1:-1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]
    # Ends with one marked neighbour and others with two are a path and perhaps rings beside it. Rings would make it longer
    # than a shortest path; and no cell of a shortest path has a third neighbour on it, which would be a short cut.
    is_line = (near.flatten(1) == torch.where(is_end, 1, 2)) | ~is_marked
    is_short = is_path.sum(-1) <= (right == maze.PATH).sum(-1)
    is_maze = torch.where(is_path, maze.OPEN, answers) == questions
    return (is_end.sum(-1) == 2) & is_short & (is_line & is_maze).all(-1)
