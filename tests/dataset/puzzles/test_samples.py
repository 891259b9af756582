"""Puzzles to look at: which game a data set holds, and a seeded choice among its test puzzles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.build_maze_dataset import main as build_maze
from dataset.common import PuzzleDatasetMetadata
from dataset.puzzles.samples import (
    EMPTY_DIGIT,
    MAZE_TOKENS,
    Samples,
    game_of,
    pick_samples,
)
from tests.dataset.puzzle_samples import write_small_dataset
from tests.tiny import edit_json, write_sudoku


def metadata(seq_len: int, vocab_size: int) -> PuzzleDatasetMetadata:
    facts = {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "num_puzzle_identifiers": 1}
    counts = {"total_groups": 1, "mean_puzzle_examples": 1.0, "total_puzzles": 1, "sets": ["all"]}
    return PuzzleDatasetMetadata(seq_len=seq_len, vocab_size=vocab_size, **facts, **counts)


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory):
    return write_sudoku(tmp_path_factory.mktemp("samples") / "sudoku")


@pytest.mark.parametrize(
    ("seq_len", "vocab_size", "expected"),
    [
        (16, 6, ("sudoku", 4, (2, 2))),
        (36, 8, ("sudoku", 6, (2, 3))),
        (81, 11, ("sudoku", 9, (3, 3))),
        (256, 18, ("sudoku", 16, (4, 4))),
        (81, 6, ("maze", 9, (1, 1))),
        (900, 6, ("maze", 30, (1, 1))),
        (900, 12, ("arc", 30, (1, 1))),
        (36, 12, ("arc", 6, (1, 1))),
    ],
)
def test_the_shape_of_the_data_tells_the_game(seq_len, vocab_size, expected):
    game = game_of(metadata(seq_len, vocab_size), "data")
    assert (game.name, game.side, game.box) == expected


@pytest.mark.parametrize(("seq_len", "vocab_size"), [(961, 12), (35, 12), (36, 11), (35, 6)])
def test_other_data_are_refused_with_what_was_found(seq_len, vocab_size):
    with pytest.raises(ValueError, match=rf"data/x .*{seq_len} cells .*{vocab_size} tokens"):
        game_of(metadata(seq_len, vocab_size), "data/x")


@given(count=st.integers(1, 12), seed=st.integers(0, 50))
def test_the_seed_draws_different_puzzles_of_the_test_split(sudoku, count, seed):
    _, samples = pick_samples(sudoku, count, seed)
    numbers = [sample.number for sample in samples]
    assert len(samples) == min(count, 10) and numbers == sorted(set(numbers))
    inputs = np.load(sudoku / "test" / "all__inputs.npy")
    labels = np.load(sudoku / "test" / "all__labels.npy")
    for sample in samples:
        assert np.array_equal(sample.inputs, inputs[sample.number])
        assert np.array_equal(sample.labels, labels[sample.number])
    assert [sample.number for sample in pick_samples(sudoku, count, seed)[1]] == numbers


def test_another_seed_draws_others(sudoku):
    drawn = {tuple(sample.number for sample in pick_samples(sudoku, 4, seed)[1]) for seed in range(8)}
    assert len(drawn) > 4


def test_cells_without_an_answer_are_told_apart(tmp_path):
    folder = write_sudoku(tmp_path / "data")
    edit_json(folder / "test" / "dataset.json", ignore_label_id=2)
    _, samples = pick_samples(folder, 10, 0)
    stored = np.load(folder / "test" / "all__labels.npy")
    assert np.array_equal(np.stack([s.labels for s in samples]) == -100, stored == 2)


def test_each_puzzle_keeps_its_identifier(tmp_path):
    folder = write_sudoku(tmp_path / "data", identifiers=6)
    stored = np.load(folder / "test" / "all__puzzle_identifiers.npy").tolist()
    assert [sample.identifier for sample in pick_samples(folder, 10, 0)[1]] == stored


def test_tokens_mean_what_the_builders_write(sudoku, tmp_path, capsys):
    assert {int(t) - EMPTY_DIGIT for t in np.load(sudoku / "test" / "all__labels.npy").ravel()} == {1, 2, 3, 4}
    size = ["--generate", "7", "--count", "8", "--test-count", "4", "--num-workers", "1"]
    build_maze([*size, "--output-dir", str(tmp_path / "maze")])
    board = "".join(MAZE_TOKENS[int(t)] for t in np.load(tmp_path / "maze" / "test" / "all__labels.npy")[0])
    assert board.count("S") == board.count("G") == 1 and set(board) == set("# SGo")


def test_examples_are_found_by_the_identifier_of_their_puzzle(tmp_path):
    folder = write_small_dataset(tmp_path / "data", sets=("a", "b"))
    samples = Samples(folder, "train")
    assert samples.identifiers() == [1, 2, 3, 4, 5, 6]
    for identifier in samples.identifiers():
        of_puzzle = samples.of(identifier)
        others = set(range(len(samples))) - set(of_puzzle)
        assert {samples[number].identifier for number in of_puzzle} == {identifier}
        assert identifier not in {samples[number].identifier for number in others}
    assert samples.of(99) == []
