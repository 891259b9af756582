"""Rules of games: the vectorised checks agree with the ones that look at a board cell by cell."""

from itertools import combinations

import numpy as np
import pytest
import torch

from dataset.build_maze_dataset import main as build_maze
from dataset.puzzles.maze import GOAL, OPEN, PATH, START, WALL, generate_maze, maze_problem, shortest_paths
from dataset.puzzles.rules import are_shortest_paths, are_valid_boards, is_solution, question_problem, rule_of
from dataset.puzzles.samples import Game, game_of, pick_samples
from dataset.puzzles.sudoku import ALL_SHAPES, SHAPES, solutions, tokens_of
from tests.tiny import write_sudoku


def tensors(*boards: list) -> list[torch.Tensor]:
    return [torch.tensor(np.array(board), dtype=torch.int32) for board in boards]


def leads_to_goal(question: np.ndarray, answer: np.ndarray, most: int) -> bool:
    """By searching the marked cells."""
    marked = (answer == PATH) & (question == OPEN)
    start, goal = np.flatnonzero(question == START)[0], np.flatnonzero(question == GOAL)[0]
    allowed = np.where(marked | (question == START) | (question == GOAL), OPEN, WALL)
    distance, _ = shortest_paths(allowed, round(len(question) ** 0.5), int(start))
    return bool(distance[goal] > 0 and (answer == PATH).sum() <= most)


def test_of_all_markings_of_an_open_field_those_are_kept_that_are_a_shortest_path():
    question = np.full(16, OPEN)
    question[[0, 15]] = START, GOAL
    free = np.flatnonzero(question == OPEN)
    answers = []
    for count in range(7):
        for cells in combinations(free, count):
            answers.append(question.copy())
            answers[-1][list(cells)] = PATH
    label = question.copy()
    label[[1, 2, 3, 7, 11]] = PATH
    questions, labels, given = tensors([question] * len(answers), [label] * len(answers), answers)
    found = are_shortest_paths(questions, labels, given)
    assert found.tolist() == [leads_to_goal(question, answer, 5) for answer in answers]
    assert found.sum() == 20, "ways over a field of 4 by 4"


def test_mazes_with_walls_and_what_their_answers_may_get_wrong():
    rng = np.random.default_rng(0)
    questions, labels, answers, expected = [], [], [], []
    while len(questions) < 300:
        made = generate_maze(9, 6, [len(questions), int(rng.integers(10**6))])
        if made is None:
            continue
        question, label = made
        answer = label.copy()
        for cell in rng.permutation(len(answer))[: rng.integers(3)]:
            answer[cell] = PATH if answer[cell] in (WALL, OPEN) else OPEN
        questions, labels, answers = [*questions, question], [*labels, label], [*answers, answer]
        expected.append(not maze_problem((question, answer)))
    found = are_shortest_paths(*tensors(questions, labels, answers)).tolist()
    assert found == expected and 60 < sum(found) < 240
    solved = [is_solution(Game("maze", 9), *pair) for pair in zip(questions, answers, strict=True)]
    assert solved == expected, "without the label"


def test_the_answer_must_show_the_maze_and_the_question_be_one():
    question, label = np.full(9, OPEN), np.full(9, OPEN)
    for board in (question, label):
        board[[0, 2]] = START, GOAL
    label[1] = PATH
    elsewhere, no_end = label.copy(), label.copy()
    elsewhere[8], no_end[2] = WALL, OPEN
    no_goal = np.where(question == GOAL, OPEN, question)
    padding = np.zeros(9, dtype=int)
    questions, answers = [question] * 3 + [no_goal, padding], [label, elsewhere, no_end, label, padding]
    assert are_shortest_paths(*tensors(questions, [label] * 5, answers)).tolist() == [True] + 4 * [False]


@pytest.mark.parametrize("size", SHAPES)
def test_a_sudoku_may_have_other_answers_than_the_label(size):
    shape = SHAPES[size]
    game = Game("sudoku", shape.size, (shape.box_rows, shape.box_columns))
    clues = [0] * shape.num_cells
    clues[:3] = [2, 1, 3] if shape.box_columns == 3 else [2, 1, 4]
    many = solutions(clues, shape, limit=40, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    answers, expected = [], []
    for board in many:
        answers.append(board)
        expected.append(True)
        one, other = rng.choice(shape.num_cells, 2, replace=False)
        answers.append(list(board))
        answers[-1][one], answers[-1][other] = board[other], board[one]
        expected.append(len(solutions(answers[-1], shape)) == 1 and answers[-1][:3] == clues[:3])
        answers.append(list(board))
        answers[-1][one] = 0
        expected.append(False)
    given = torch.from_numpy(tokens_of(np.array(answers, dtype=np.int32)))
    questions = torch.from_numpy(tokens_of(np.array([clues] * len(answers), dtype=np.int32)))
    assert are_valid_boards(game, questions, given).tolist() == expected
    assert [is_solution(game, *pair) for pair in zip(questions.numpy(), given.numpy(), strict=True)] == expected
    digits = given - 1
    renamed = torch.where(digits > 0, digits % shape.size + 2, given)  # to the next digit: only the clues are broken
    assert not are_valid_boards(game, questions, renamed).any()
    free = torch.ones_like(questions)
    assert are_valid_boards(game, free, renamed)[::3].all()


def test_a_board_is_wrong_by_its_rows_its_columns_or_its_boxes_alone():
    columns = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [1, 2, 3, 4], [3, 4, 1, 2]])
    boxes = np.array([[1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 1, 2], [4, 1, 2, 3]])
    right = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]])
    (given,) = tensors([board.ravel() + 1 for board in (columns, columns.T, boxes, right)])
    found = are_valid_boards(Game("sudoku", 4, (2, 2)), torch.ones_like(given), given)
    assert found.tolist() == [False, False, False, True]


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=lambda shape: f"{shape.size}")
def test_a_full_board_of_every_size_has_every_digit_in_every_line_and_box(shape):
    game = Game("sudoku", shape.size, (shape.box_rows, shape.box_columns))
    rows = np.arange(shape.size)
    starts = rows % shape.box_rows * shape.box_columns + rows // shape.box_rows
    board = (starts[:, None] + np.arange(shape.size)) % shape.size + 1
    answers = [board, np.roll(board, 1, axis=0), np.where(board == 1, 0, board)]  # lines without boxes; empty cells
    given = tensors([answer.ravel() + 1 for answer in answers])[0]
    assert are_valid_boards(game, torch.ones_like(given), given).tolist() == [True, False, False]


def test_each_game_has_its_rule():
    names = [rule_of(game) and rule_of(game).metric for game in (Game("sudoku", 4, (2, 2)), Game("maze", 7), None)]
    assert names == ["valid_boards", "valid_shortest", None] and rule_of(Game("arc", 30)) is None


def test_a_right_answer_solves_its_puzzle_and_any_other_cell_does_not(tmp_path):
    sudoku = write_sudoku(tmp_path / "sudoku")
    build_maze(["--generate", "7", "--count", "5", "--test-count", "5", "--output-dir", str(tmp_path / "maze")])
    for folder in (sudoku, tmp_path / "maze"):
        found, samples = pick_samples(folder, 5, 0)
        game = game_of(found, folder)
        for sample in samples:
            assert question_problem(game, sample.inputs) is None
            assert is_solution(game, sample.inputs, sample.labels)
            for cell in range(0, len(sample.labels), 3):
                other = sample.labels.copy()
                other[cell] = (other[cell] + 1) % found.vocab_size
                assert is_solution(game, sample.inputs, other) is False


def test_of_several_solutions_every_one_counts_and_givens_must_stay():
    empty = np.ones(16, dtype=np.int32)
    full = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]) + 1
    game = Game("sudoku", 4, (2, 2))
    assert is_solution(game, empty, full)
    assert is_solution(game, np.where(np.arange(16) == 0, 3, empty), full) is False
    assert "twice" in question_problem(game, np.where(np.arange(16) < 2, 3, empty))
    maze = np.array([3, 2, 2, 2, 2, 4, 1, 1, 1])  # S and G at the ends of two ways
    for path in ((1, 2), (1, 4), (3, 4)):
        assert is_solution(Game("maze", 3), maze, np.where(np.isin(np.arange(9), path), 5, maze))
    assert is_solution(Game("maze", 3), maze, maze) is False
    assert "0 starts" in question_problem(Game("maze", 3), np.full(9, 2))
    assert is_solution(Game("maze", 3), np.full(9, 2), np.full(9, 2)) is False
    arc = np.zeros(900, dtype=np.int32)
    assert is_solution(Game("arc", 30), arc, arc) is None and question_problem(Game("arc", 30), arc) is None
