"""The symmetries of a grid and the metadata."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataset.common import PuzzleDatasetMetadata, dihedral_transform, inverse_dihedral_transform
from tests.dataset.puzzle_samples import parity_arrays


@pytest.mark.parametrize("tid", range(8))
def test_dihedral_transforms_equal_the_reference(tid: int) -> None:
    golden = parity_arrays("puzzle_dataset")
    grid = golden["dihedral/grid"]
    np.testing.assert_array_equal(dihedral_transform(grid, tid), golden[f"dihedral/dihedral{tid}"])
    np.testing.assert_array_equal(inverse_dihedral_transform(grid, tid), golden[f"dihedral/inverse{tid}"])


@given(rows=st.integers(0, 5), columns=st.integers(0, 5), tid=st.integers(0, 7))
def test_inverse_undoes_any_transform(rows: int, columns: int, tid: int) -> None:
    grid = np.arange(rows * columns).reshape(rows, columns)
    np.testing.assert_array_equal(inverse_dihedral_transform(dihedral_transform(grid, tid), tid), grid)


def test_the_eight_transforms_differ() -> None:
    grid = np.arange(6).reshape(2, 3)
    assert (
        len({(dihedral_transform(grid, tid).shape, dihedral_transform(grid, tid).tobytes()) for tid in range(8)}) == 8
    )


@pytest.mark.parametrize("tid", [-1, 8])
def test_unknown_transform_is_refused(tid: int) -> None:
    for transform in (dihedral_transform, inverse_dihedral_transform):
        with pytest.raises(ValueError, match=f"Unknown dihedral transform {tid}"):
            transform(np.zeros((2, 2)), tid)


def test_metadata_refuses_impossible_sizes() -> None:
    fields = parity_sudoku_metadata()
    assert PuzzleDatasetMetadata(**fields, ignore_label_id=None).ignore_label_id is None
    with pytest.raises(ValidationError, match="vocab_size"):
        PuzzleDatasetMetadata(**fields | {"vocab_size": 0}, ignore_label_id=0)


def parity_sudoku_metadata() -> dict[str, object]:
    return {
        "pad_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 11,
        "seq_len": 81,
        "num_puzzle_identifiers": 1,
        "total_groups": 1,
        "mean_puzzle_examples": 1.0,
        "total_puzzles": 1,
        "sets": ["all"],
    }
