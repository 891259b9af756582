"""ARC grids: tokens, hashes, augmentation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataset.puzzles.arc_grids import (
    EOS,
    IDENTITY,
    MAX_GRID_SIZE,
    PAD,
    Augmentation,
    at_corner,
    crop,
    draw_augmentation,
    grid_hash,
    pairs_hash,
    parse_name,
    shape_and_bytes_hash,
    to_grid,
    to_tokens,
)
from tests.dataset.puzzle_samples import parity_arrays, parity_json

SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 30))
GRIDS = arrays(np.uint8, SHAPES, elements=st.integers(0, 9))
AUGMENTATIONS = st.integers(0, 2**32 - 1).map(lambda seed: draw_augmentation(np.random.RandomState(seed)))


def test_grid_hash_equals_the_reference() -> None:
    grid = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = {
        "grid_hash(arange(12).reshape(3,4))": grid_hash(grid),
        "grid_hash([[0]])": grid_hash(np.array([[0]])),
        "grid_hash(transposed view of the first)": grid_hash(grid.T),
    }
    assert found == parity_json("puzzle_dataset")["grid_hash"]
    assert shape_and_bytes_hash(3, 4, grid.tobytes()) == grid_hash(grid)


def test_shape_belongs_to_the_hash() -> None:
    grid = np.arange(6, dtype=np.uint8)
    assert len({grid_hash(grid.reshape(shape)) for shape in ((1, 6), (2, 3), (3, 2), (6, 1))}) == 4


def test_hash_of_pairs_ignores_their_order_only() -> None:
    assert pairs_hash([("a", "b"), ("c", "d")]) == pairs_hash([("c", "d"), ("a", "b")])
    assert pairs_hash([("a", "b")]) != pairs_hash([("b", "a")])


@given(grid=GRIDS, augmentation=AUGMENTATIONS)
def test_inverse_undoes_the_augmentation_its_name_tells(grid: np.ndarray, augmentation: Augmentation) -> None:
    puzzle, parsed = parse_name(augmentation.name("00576224"))
    assert (puzzle, parsed) == ("00576224", augmentation)
    turned = augmentation.apply(grid)
    np.testing.assert_array_equal(parsed.invert(turned), grid)
    assert turned.dtype == parsed.invert(turned).dtype == np.uint8


@given(augmentation=AUGMENTATIONS)
def test_black_stays_black(augmentation: Augmentation) -> None:
    assert augmentation.colours[0] == 0 and sorted(augmentation.colours) == list(range(10))


def test_plain_name_is_not_augmented() -> None:
    assert parse_name("00576224") == ("00576224", IDENTITY)


@given(grid=GRIDS, data=st.data())
def test_crop_finds_the_grid_in_its_tokens_in_a_field_of_any_size(grid: np.ndarray, data: st.DataObject) -> None:
    field = data.draw(st.integers(max(grid.shape), MAX_GRID_SIZE))
    tokens = to_tokens(grid, field=field)
    (found,) = crop(tokens)
    assert tokens.shape == (field**2,)
    np.testing.assert_array_equal(found, grid)


def test_tokens_end_with_a_row_and_a_column_of_eos() -> None:
    square = to_tokens(np.array([[0, 9], [5, 5]]), top=1, left=27).reshape(MAX_GRID_SIZE, MAX_GRID_SIZE)
    wanted = np.full((4, 4), PAD)
    wanted[1:3, 1:3] = [[2, 11], [7, 7]]
    wanted[3, 1:3] = wanted[1:3, 3] = EOS
    np.testing.assert_array_equal(square[:4, 26:], wanted)
    assert (square[:, :26] == PAD).all() and (square[4:] == PAD).all()


def test_grid_at_the_border_has_no_eos() -> None:
    assert (to_tokens(np.zeros((30, 30), dtype=int)) == 2).all()


def test_crop_equals_the_reference_on_noise() -> None:
    golden = parity_arrays("arc_evaluator")
    assert [list(grid.shape) for grid in crop(golden["preds"])] == golden["crop_shapes"].tolist()


def test_crop_prefers_area_and_may_be_empty() -> None:
    square = np.zeros((30, 30), dtype=np.int32)
    square[0, :5] = 3
    square[1:4, :2] = 4
    square[10:, 10:] = 5
    wide, nothing, negative = crop(np.stack([square, np.ones_like(square), np.full_like(square, -3)]).reshape(3, -1))
    assert wide.tolist() == [[1, 1], [2, 2], [2, 2], [2, 2]]
    assert nothing.shape == negative.shape == (0, 0)
    assert crop(np.zeros((0, 900), dtype=np.int32)) == []


@pytest.mark.parametrize(
    "rows", [[], [[]], [[1], [1, 2]], [[10]], [[-1]], [[0.5]], [[1] * 31], 5, "x", [["a"]], None, [[[1]]]]
)
def test_what_is_no_grid_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match="puzzle 'x' .*1 to 30 rows"):
        to_grid(rows, "puzzle 'x'")


@given(GRIDS, st.data())
def test_a_grid_anywhere_in_the_field_is_moved_to_the_corner(grid, data):
    field = data.draw(st.integers(max(grid.shape), 30))
    top, left = (data.draw(st.integers(0, field - length)) for length in grid.shape)
    assert np.array_equal(at_corner(to_tokens(grid, top, left, field)), to_tokens(grid, field=field))
    nothing = np.zeros(field**2, dtype=np.int32)
    assert np.array_equal(at_corner(nothing), nothing)
