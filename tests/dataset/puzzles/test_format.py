"""Opening a data set says what is wrong with it, where, and what to do."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataset.puzzles.format
from dataset.puzzles.format import open_split, read_array
from tests.dataset.puzzle_samples import write_small_dataset

Change = Callable[[Path], None]


def array(field: str, change: Callable[[np.ndarray], Any]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "train" / f"all__{field}.npy"
        np.save(file, change(np.load(file)))

    return apply


def set_item(index: Any, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.int32)
        values[index] = value
        return values

    return change


def metadata(**changes: Any) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "train" / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def text(content: str) -> Change:
    return lambda folder: (folder / "train" / "dataset.json").write_text(content) and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text("{"), r"Cannot use .*dataset.json \(.*Invalid JSON"),
        (text("{}"), "pad_id: Field required; "),
        (metadata(seq_len="x"), "seq_len: "),
        (metadata(sets=["all", "all"]), "sets=\\['all', 'all'\\]"),
        (metadata(sets=["other"]), "other__inputs.npy"),
        (metadata(seq_len=4), "all__inputs.npy .* 3 .*seq_len=4"),
        (metadata(total_groups=9), "says total_groups=9, but .* hold 3 groups"),
        (metadata(num_puzzle_identifiers=3), "all__puzzle_identifiers.npy .* 1 to 6.* 0 to 2"),
        (metadata(vocab_size=12), r"all__inputs.npy .* 12 in row 12; .*vocab_size=12"),
        (array("inputs", set_item((7, 1), -1)), "all__inputs.npy .* -1 in row 7"),
        (array("labels", set_item((5, 0), 200)), "all__labels.npy .* 200 in row 5.* 0 to 199"),
        (array("labels", lambda a: a[:-1]), "all__labels.npy has 12 rows; expected 13"),
        (array("labels", lambda a: a[0]), r"all__labels.npy holds uint8 of shape \(3,\); expected integers with 2"),
        (array("inputs", lambda a: a.astype(float)), "all__inputs.npy holds float64"),
        (
            array("puzzle_indices", set_item(-1, 12)),
            "puzzle_indices.npy ends with 12; expected 13, the number of examples",
        ),
        (array("puzzle_indices", set_item(0, 1)), r"puzzle_indices.npy starts with \[1\]"),
        (array("puzzle_indices", set_item(1, 6)), "puzzle_indices.npy goes from 6 to 5 at 1"),
        (array("puzzle_indices", lambda a: np.delete(a, 2)), "has 6 values; expected 6 puzzles"),
        (
            array("group_indices", set_item(1, 3)),
            "group_indices.npy goes from 3 to 3 at 1; expected steps of 1 or more",
        ),
        (array("group_indices", lambda a: a[:0]), "group_indices.npy starts with"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, change: Change, message: str) -> None:
    folder = write_small_dataset(tmp_path / "d", ((2, 3), (1,), (4, 1, 2)))
    open_split(folder, "train")
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        open_split(folder, "train")
    assert "ebuild the data set" in str(error.value) or "must list" in str(error.value)


@pytest.mark.parametrize("piece", [1, 64, 1 << 25])
def test_bad_label_is_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(dataset.puzzles.format, "SCAN_BYTES", piece)
    folder = write_small_dataset(tmp_path / "d", ((50,), (50,)), ignore_label_id=None)
    array("labels", set_item((99, 2), 200))(folder)
    with pytest.raises(ValueError, match="value 200 in row 99"):
        open_split(folder, "train")


def test_ignored_labels_are_no_tokens(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "d", ignore_label_id=250)
    array("labels", set_item((slice(None), 0), 250))(folder)
    array("labels", set_item((slice(None), 1), -100))(folder)
    open_split(folder, "train")


def test_rows_without_a_label_are_counted_and_refused_if_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_small_dataset(tmp_path / "d", ((2, 3), (1,), (4, 1, 2)), ignore_label_id=250)
    open_split(folder, "train")
    assert capsys.readouterr().err == ""
    array("labels", set_item(slice(1, 4), 250))(folder)
    open_split(folder, "train")
    assert "all__labels.npy: 3 of 13" in capsys.readouterr().err
    array("labels", set_item((slice(None), 1), -100))(folder)
    array("labels", set_item((slice(None), slice(0, 3, 2)), 250))(folder)
    with pytest.raises(ValueError, match=r"all__labels.npy .*13"):
        open_split(folder, "train")


def test_missing_folder_and_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere'.*python -m dataset.build_sudoku_dataset"):
        open_split(tmp_path / "nowhere", "train")
    folder = write_small_dataset(tmp_path / "d")
    with pytest.raises(ValueError, match="has no split 'valid'.*Splits found: test, train"):
        open_split(folder, "valid")


def test_file_that_is_no_array_is_named(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "d")
    archive = io.BytesIO()
    np.savez(archive, inputs=np.zeros((13, 3), dtype=np.uint8))
    for field in ("inputs", "group_indices"):
        file = folder / "train" / f"all__{field}.npy"
        sound = file.read_bytes()
        for content in (b"", b"no array", np.lib.format.MAGIC_PREFIX, archive.getvalue(), archive.getvalue()[:40]):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=file.name):
                open_split(folder, "train")
        file.write_bytes(sound)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 127), bit=st.integers(0, 7), is_mapped=st.booleans())
def test_a_damaged_header_is_read_or_told(tmp_path: Path, place: int, bit: int, is_mapped: bool) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.zeros((6, 4), dtype=np.uint8))
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    with contextlib.suppress(ValueError):
        read_array(file, "Build it again.", is_mapped)


def test_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "d")
    np.save(folder / "train" / "all__puzzle_identifiers.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=".npy"):
        open_split(folder, "train")


def test_inputs_stay_on_disk(tmp_path: Path) -> None:
    puzzles = open_split(write_small_dataset(tmp_path / "d"), "train").sets["all"]
    assert isinstance(puzzles.inputs, np.memmap) and isinstance(puzzles.labels, np.memmap)
