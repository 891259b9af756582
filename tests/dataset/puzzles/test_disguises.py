"""Disguises: a puzzle stays a puzzle and its answer the answer, drawn from the seed alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.common import text_metadata
from dataset.puzzles.disguises import Disguises
from dataset.puzzles.maze import VOCAB_SIZE, dihedral_key
from dataset.puzzles.reader import PuzzleDataset, PuzzleDatasetConfig
from dataset.puzzles.sudoku import SHAPES, generate_puzzle, sudoku_problem, symmetry_key, tokens_of
from tests.tiny import write_sudoku

PAIRS = {size: generate_puzzle(SHAPES[size], (40, 81) if size == "9x9" else (6, 20), [0, 1]) for size in SHAPES}
SEED = st.lists(st.integers(0, 2**31), min_size=1, max_size=4)


@pytest.mark.parametrize("size", SHAPES)
@given(seed=SEED)
def test_a_disguised_sudoku_has_its_disguised_answer(size, seed):
    shape = SHAPES[size]
    disguises = Disguises(text_metadata(shape.num_cells, shape.vocab_size, 0), "here")
    board, answer = (tokens_of(part.astype(np.int64)) for part in PAIRS[size])
    disguise = disguises.draw(seed)
    found = disguise.of(board), disguise.of(answer)
    assert sudoku_problem(shape, tuple((part - 1).astype(np.uint8) for part in found)) is None
    assert symmetry_key((found[0] - 1).astype(np.uint8), shape) == symmetry_key(PAIRS[size][0], shape)
    again = disguises.draw(seed)
    assert all(np.array_equal(one, other) for one, other in zip(disguise, again, strict=True))
    assert disguise.tokens[0] == 0 and sorted(disguise.tokens) == list(range(shape.vocab_size))


@given(seed=SEED)
def test_a_disguised_maze_is_a_turn_or_a_reflection(seed):
    maze = np.random.default_rng(0).integers(1, VOCAB_SIZE, 49).astype(np.uint8)
    disguise = Disguises(text_metadata(49, VOCAB_SIZE, 0), "here").draw(seed)
    assert dihedral_key(disguise.of(maze).astype(np.uint8)) == dihedral_key(maze)


def test_disguises_differ():
    draw = Disguises(text_metadata(16, 6, 0), "here").draw
    assert len({(*map(int, draw([0, n]).cells), *map(int, draw([0, n]).tokens)) for n in range(50)}) > 45


def test_games_whose_examples_belong_together_are_refused():
    with pytest.raises(ValueError, match="ARC"):
        Disguises(text_metadata(900, 12, 0), "here")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sudoku(tmp_path_factory.mktemp("disguises"))


def batches(folder: Path, iteration: int = 1, done: int = 0, **options):
    given = {
        "dataset_paths": [str(folder)],
        "global_batch_size": 6,
        "test_set_mode": False,
        "disguises": True,
    } | options
    data = PuzzleDataset(PuzzleDatasetConfig(**given), "test" if given["test_set_mode"] else "train")
    if not given["test_set_mode"]:
        data.start_from(iteration, done)
    return [batch for _, batch, _ in data]


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_sees_every_puzzle_in_another_disguise_each_time(small):
    plain, shape = batches(small, disguises=False), SHAPES["4x4"]
    first, second = batches(small), batches(small, iteration=2)
    keys = [sorted(symmetry_key((row - 1).numpy().astype(np.uint8), shape) for row in torch.cat([b["inputs"] for b in each]))
            for each in (plain, first)]  # fmt: skip
    assert keys[0] == keys[1]
    assert not any(same(one, other) for one, other in zip(plain, first, strict=True))
    seen = {tuple(row.tolist()) for each in (first, second) for batch in each for row in batch["labels"]}
    assert len(seen) > 40, "24 puzzles in two disguises each"
    for batch in first:
        for board, answer in zip(batch["inputs"], batch["labels"], strict=True):
            assert sudoku_problem(shape, tuple((part - 1).numpy().astype(np.uint8) for part in (board, answer))) is None


def test_disguises_are_those_of_one_rank_on_every_rank_and_after_a_resume(small):
    whole = batches(small)
    parts = [batches(small, rank=rank, num_replicas=3) for rank in range(3)]
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert same(batch, {name: torch.cat([part[name] for part in of_ranks]) for name in batch})
    rest = batches(small, done=2)
    assert len(rest) == len(whole) - 2 and all(map(same, rest, whole[2:]))


def test_held_out_puzzles_are_left_as_they_are(small):
    assert all(map(same, batches(small, test_set_mode=True), batches(small, test_set_mode=True, disguises=False)))
