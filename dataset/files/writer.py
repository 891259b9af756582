"""Writes data sets in the on-disk format; a data set appears under its name only when it is complete."""

import filecmp
import glob
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from dataset.common import PuzzleDatasetMetadata
from dataset.files.disk import FULL_DISK, allocate, check_space, exclusive_lock, make_directory, remove_if_empty
from dataset.puzzles.format import BLANK_NAME, PuzzleSet

IDENTIFIERS_FILE = "identifiers.json"
TEST_PUZZLES_FILE = "test_puzzles.json"
TOKENIZER_FOLDER = "tokenizer"  # beside the splits of a data set of conversations
BOARD_SET = "all"  # the one set of data sets that are made of boards


@contextmanager
def dataset_folder(output_dir: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `output_dir` at the end, or vanishes if anything fails.

    Whoever writes holds its lock; such folders that nobody holds, because their builder was killed, are removed.
    A data set that is there already and is the same stays; a different one is refused unless `overwrite`. A folder
    that holds anything else is never touched.
    """
    target = Path(output_dir).resolve()  # through a symbolic link, so that the renaming stays on one disk
    _check_replaceable(target)
    new = make_directory(target.parent)
    _remove_abandoned(target)
    unlocked = target.parent / f".{target.name}.{secrets.token_hex(4)}"  # a name under which nobody looks for it yet
    partial = unlocked.with_name(f"{unlocked.name}.partial")
    with exclusive_lock(unlocked):
        unlocked.rename(partial)
        try:
            yield partial
            _put_in_place(partial, target, unlocked.with_name(f"{unlocked.name}.replaced"), overwrite)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise ValueError(
                f"Cannot write {target}: {error.strerror}. The disk is full, and nothing is left of the data set. Make "
                "room, or choose another output folder with --output-dir."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            remove_if_empty(new)


def _remove_abandoned(target: Path) -> None:
    if sys.platform == "win32":  # which has no locks that would tell
        return
    for partial in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(ValueError), exclusive_lock(partial):
            shutil.rmtree(partial, ignore_errors=True)
            print(f"removed {partial}, which a build left that was killed", file=sys.stderr)


def create_array(folder: Path, split: str, set_name: str, field: str, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array on disk that is filled piece by piece and then handed to `write_split`."""
    file = _array_file(folder, split, set_name, field)
    file.parent.mkdir(exist_ok=True)
    with open(file, "wb") as out:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        allocate(out, math.prod(shape))
    array: np.ndarray = np.load(file, mmap_mode="r+", allow_pickle=False)
    return array


def write_array(folder: Path, split: str, set_name: str, field: str, array: np.ndarray) -> None:
    file = _array_file(folder, split, set_name, field)
    check_space(file.parent, array.nbytes)
    np.save(file, array, allow_pickle=False)


def write_split(folder: Path, split: str, metadata: PuzzleDatasetMetadata, sets: dict[str, PuzzleSet]) -> None:
    """Write one split; arrays from `create_array` are where they belong already."""
    (folder / split).mkdir(exist_ok=True)
    for set_name, puzzles in sets.items():
        for field in fields(puzzles):
            array = getattr(puzzles, field.name)
            file = _array_file(folder, split, set_name, field.name)
            if isinstance(array, np.memmap) and Path(str(array.filename)) == file:
                array.flush()
            else:
                write_array(folder, split, set_name, field.name, array)
    _write_json(folder / split / "dataset.json", metadata.model_dump())


def write_names(folder: Path, identifiers: list[str], test_puzzles: dict[str, Any] | None = None) -> None:
    """Write what the identifiers are called and, where an evaluator needs them, the test puzzles as they came."""
    _write_json(folder / IDENTIFIERS_FILE, identifiers)
    if test_puzzles is not None:
        _write_json(folder / TEST_PUZZLES_FILE, test_puzzles)


def write_boards(
    folder: Path, split: str, inputs: np.ndarray, labels: np.ndarray, vocab_size: int, group_size: int = 1
) -> None:
    """Write a split of boards without identifiers: each is a puzzle, `group_size` of them in a row are one group."""
    num_boards, seq_len = inputs.shape
    num_groups = num_boards // group_size
    puzzles = PuzzleSet(
        inputs=inputs,
        labels=labels,
        puzzle_identifiers=np.zeros(num_boards, dtype=np.int32),
        puzzle_indices=np.arange(num_boards + 1, dtype=np.int32),
        group_indices=np.arange(0, num_boards + 1, group_size, dtype=np.int32),
    )
    metadata = PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=1,
        total_groups=num_groups,
        mean_puzzle_examples=1,
        total_puzzles=num_groups,  # as in the reference: an epoch is one board of each group
        sets=[BOARD_SET],
    )
    write_split(folder, split, metadata, {BOARD_SET: puzzles})
    write_names(folder, [BLANK_NAME])


def _array_file(folder: Path, split: str, set_name: str, field: str) -> Path:
    return folder / split / f"{set_name}__{field}.npy"


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; a data set is a folder. Choose another output folder.")
    ours = {IDENTIFIERS_FILE, TEST_PUZZLES_FILE, *(file.parent.name for file in target.glob("*/dataset.json"))}
    if any(target.glob("*/dataset.json")):
        ours.add(TOKENIZER_FOLDER)  # a folder of that name alone is somebody's tokenizer
    foreign = [entry.name for entry in sorted(target.iterdir()) if entry.name not in ours]
    if foreign:
        raise ValueError(
            f"{target} holds what belongs to no data set ({', '.join(foreign[:3])}). Choose another output folder."
        )


def _put_in_place(partial: Path, target: Path, replaced: Path, overwrite: bool) -> None:
    if target.exists() and any(target.iterdir()):
        if _same_content(partial, target):
            return
        if not overwrite:
            raise ValueError(
                f"{target} holds a different data set. Nothing was changed; choose another output folder, "
                "or replace it with --overwrite."
            )
        target.rename(replaced)
    os.replace(partial, target)
    shutil.rmtree(replaced, ignore_errors=True)


def _same_content(one: Path, other: Path) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    if files != sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()):
        return False
    return not any(filecmp.cmpfiles(one, other, [str(file) for file in files], shallow=False)[1:])
