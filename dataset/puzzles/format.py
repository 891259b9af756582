"""Opens one split of one data set folder, memory-mapped, and checks that its arrays are what dataset.json says."""

import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from dataset.files.json_file import read_json, read_model
from dataset.puzzles.arc_copies import AUGMENTATIONS, SOURCES, Copies, problem

BLANK_NAME = "<blank>"  # how identifiers.json calls an identifier that belongs to no puzzle
FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
SCAN_BYTES = 1 << 25  # how much of a memory-mapped array is looked at in one go


@dataclass(frozen=True)
class PuzzleSet:
    """The arrays of one set. Examples belong to puzzles and puzzles to groups, both as ranges."""

    inputs: np.ndarray | Copies  # (examples, seq_len), memory-mapped
    labels: np.ndarray | Copies  # (examples, seq_len), memory-mapped
    puzzle_identifiers: np.ndarray  # (puzzles,)
    puzzle_indices: np.ndarray  # (puzzles + 1,) first example of each puzzle
    group_indices: np.ndarray  # (groups + 1,) first puzzle of each group

    @property
    def num_examples(self) -> int:
        return int(self.puzzle_indices[-1])


@dataclass(frozen=True)
class PuzzleSplit:
    folder: Path
    metadata: PuzzleDatasetMetadata
    sets: dict[str, PuzzleSet]


def open_split(dataset_path: str | Path, split: str, check: bool = True) -> PuzzleSplit:
    """Open `dataset_path`/`split`; `check=False` is for a split that has been checked before."""
    folder = Path(dataset_path) / split
    metadata = read_metadata(dataset_path, split)
    sets = {name: _open_set(folder, name) for name in metadata.sets}
    if check:
        for name, puzzles in sets.items():
            _check_set(folder, name, puzzles, metadata)
        num_groups = sum(len(puzzles.group_indices) - 1 for puzzles in sets.values())
        if num_groups != metadata.total_groups:
            raise ValueError(
                f"{folder / 'dataset.json'} says total_groups={metadata.total_groups}, but the group_indices of its "
                f"sets hold {num_groups} groups. Rebuild the data set."
            )
    return PuzzleSplit(folder, metadata, sets)


def read_metadata(dataset_path: str | Path, split: str) -> PuzzleDatasetMetadata:
    root, file = Path(dataset_path), Path(dataset_path) / split / "dataset.json"
    if not root.is_dir():
        raise ValueError(
            f"No data set at '{root}': there is no such folder. Correct data_paths, or build it as docs/puzzles.md says. "
            "The smallest, for recipe=sudoku_4x4: "
            "python -m dataset.build_sudoku_dataset --generate 4x4 --count 5000 --output-dir data/sudoku-4x4"
        )
    if not file.is_file():
        found = sorted(path.parent.name for path in root.glob("*/dataset.json"))
        raise ValueError(
            f"'{root}' has no split '{split}': {file} does not exist. "
            f"Splits found: {', '.join(found) or 'none'}. Use one of them or rebuild the data set."
        )
    metadata = read_model(file, PuzzleDatasetMetadata, "Rebuild the data set.")
    if not metadata.sets or len(set(metadata.sets)) != len(metadata.sets):
        raise ValueError(f"{file} must list one or more different sets, but it says sets={metadata.sets}.")
    return metadata


def identifier_range(dataset_path: str | Path) -> range:
    """The identifiers that the puzzles of a data set may use; the blank one is not among them."""
    root = Path(dataset_path)
    splits = sorted(path.parent.name for path in root.glob("*/dataset.json"))
    metadata = read_metadata(root, splits[0] if splits else "train")
    first = 1 if metadata.blank_identifier_id == 0 else 0
    if (root / "identifiers.json").is_file():  # names those below --puzzle-identifiers-start as blank
        names = read_identifiers(root)
        first = next((i for i, name in enumerate(names) if name != BLANK_NAME), metadata.num_puzzle_identifiers)
    return range(first, max(first, metadata.num_puzzle_identifiers))


def read_identifiers(dataset_path: str | Path) -> list[str]:
    """The name of each puzzle identifier."""
    file = Path(dataset_path) / "identifiers.json"
    names = read_json(file, list, "It names the puzzle identifiers. Rebuild the data set.")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must hold a list of names. Rebuild the data set.")
    return names


def _open_set(folder: Path, name: str) -> PuzzleSet:
    arrays = {}
    for field in FIELDS:
        file = folder / f"{name}__{field}.npy"
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist, though dataset.json lists the set '{name}'. Rebuild the data set."
            )
        arrays[field] = read_array(file, "Rebuild the data set.", is_mapped=field in ("inputs", "labels"))
        dimensions = 2 if field in ("inputs", "labels") else 1
        if arrays[field].dtype.kind not in "iu" or arrays[field].ndim != dimensions:
            raise ValueError(
                f"{file} holds {arrays[field].dtype} of shape {arrays[field].shape}; "
                f"expected integers with {dimensions} dimension(s). Rebuild the data set."
            )
    if (folder / f"{name}__{SOURCES}.npy").is_file():
        return _with_copies(folder, name, arrays)
    return PuzzleSet(**arrays)


def _with_copies(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> PuzzleSet:
    """A set of which only the originals are stored."""
    files = [folder / f"{name}__{field}.npy" for field in (SOURCES, AUGMENTATIONS)]
    sources, augmentations = (read_array(file, "Rebuild the data set.") for file in files)
    boards, indices = (arrays.pop("inputs"), arrays.pop("labels")), arrays["puzzle_indices"]
    found = problem(min(boards, key=len), sources, augmentations, len(arrays["puzzle_identifiers"]))
    if found is not None:
        raise ValueError(f"{files[0]} and {files[1].name} {found}. Rebuild the data set.")
    inputs, labels = (Copies(board, sources, augmentations, indices) for board in boards)
    return PuzzleSet(inputs, labels, **arrays)


def read_array(file: Path, remedy: str, is_mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, memory-mapped or not; anything else under that name is refused with the remedy."""
    try:
        if is_mapped:
            return np.lib.format.open_memmap(file, mode="r")
        with open(file, "rb") as stream:
            array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
            return array
    except (ValueError, EOFError, OSError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"{file} is not a readable .npy array ({error}). {remedy}") from error


def _check_set(folder: Path, name: str, puzzles: PuzzleSet, metadata: PuzzleDatasetMetadata) -> None:
    def refuse(field: str, found: str, expected: str) -> None:
        raise ValueError(f"{folder / f'{name}__{field}.npy'} {found}; expected {expected}. Rebuild the data set.")

    for field, indices, what, length in (
        ("puzzle_indices", puzzles.puzzle_indices, "examples", len(puzzles.inputs)),
        ("group_indices", puzzles.group_indices, "puzzles", len(puzzles.puzzle_identifiers)),
    ):
        if len(indices) == 0 or indices[0] != 0:
            refuse(field, f"starts with {indices[:1].tolist()}", "0 as the first value")
        if indices[-1] != length:
            refuse(field, f"ends with {indices[-1]}", f"{length}, the number of {what}")
        steps = np.diff(indices.astype(np.int64))
        smallest = 1 if field == "group_indices" else 0  # a group without a puzzle cannot be drawn from
        if len(steps) and steps.min() < smallest:
            place = int(steps.argmin())
            refuse(
                field, f"goes from {indices[place]} to {indices[place + 1]} at {place}", f"steps of {smallest} or more"
            )
    if len(puzzles.puzzle_indices) != len(puzzles.puzzle_identifiers) + 1:
        refuse(
            "puzzle_indices",
            f"has {len(puzzles.puzzle_indices)} values",
            f"{len(puzzles.puzzle_identifiers)} puzzles + 1",
        )

    for field, tokens in (("inputs", puzzles.inputs), ("labels", puzzles.labels)):
        if tokens.shape[1] != metadata.seq_len:
            refuse(field, f"has rows of {tokens.shape[1]} tokens", f"seq_len={metadata.seq_len} as in dataset.json")
    if len(puzzles.labels) != len(puzzles.inputs):
        refuse("labels", f"has {len(puzzles.labels)} rows", f"{len(puzzles.inputs)}, as many as the inputs")

    inputs, labels = (
        board.stored if isinstance(board, Copies) else board for board in (puzzles.inputs, puzzles.labels)
    )
    ids, num_ids = puzzles.puzzle_identifiers, metadata.num_puzzle_identifiers
    if len(ids) and not 0 <= ids.min() <= ids.max() < num_ids:
        refuse("puzzle_identifiers", f"has values from {ids.min()} to {ids.max()}", f"0 to {num_ids - 1}")

    vocabulary = f"0 to {metadata.vocab_size - 1} (vocab_size={metadata.vocab_size} in dataset.json)"
    ignored = {IGNORE_LABEL_ID, metadata.ignore_label_id}
    for field, tokens, exempt in (("inputs", inputs, set()), ("labels", labels, ignored)):
        outside = _first_outside(tokens, metadata.vocab_size, exempt)
        if outside is not None:
            refuse(field, f"has the value {outside[1]} in row {outside[0]}", vocabulary)

    unlabelled = _count_unlabelled(labels, ignored)
    if 0 < unlabelled < len(labels):
        file = folder / f"{name}__labels.npy"
        print(f"{file}: {unlabelled} of {len(labels)} rows have no label and teach nothing", file=sys.stderr)
    elif unlabelled:
        refuse("labels", f"has no label in any of its {unlabelled} rows", f"others than {metadata.ignore_label_id}")


def _first_outside(tokens: np.ndarray, vocab_size: int, exempt: set[int | None]) -> tuple[int, int] | None:
    """Row and value of the first token outside the vocabulary; reads a memory map piece by piece."""
    for start, piece in _pieces(tokens):
        if piece.size == 0 or (piece.min() >= 0 and piece.max() < vocab_size):
            continue
        bad = (piece < 0) | (piece >= vocab_size)
        for value in exempt - {None}:
            bad &= piece != value
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return start + int(row), int(piece[row, column])
    return None


def _count_unlabelled(labels: np.ndarray, ignored: set[int | None]) -> int:
    """How many rows have nothing but ignored labels."""
    count = 0
    for _, piece in _pieces(labels):
        is_ignored = np.zeros(piece.shape, dtype=np.bool_)
        for value in ignored - {None}:
            is_ignored |= piece == value
        count += int(is_ignored.all(axis=1).sum())
    return count


def _pieces(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """A memory map piece by piece, each with its first row."""
    rows = max(1, SCAN_BYTES // max(1, tokens.shape[1] * tokens.itemsize))
    for start in range(0, len(tokens), rows):
        yield start, np.asarray(tokens[start : start + rows])
