"""Data sets on disk for tests: those of the reference's golden data, and small made-up ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dataset.common import PuzzleDatasetMetadata
from dataset.files.writer import dataset_folder, write_names, write_split
from dataset.puzzles.format import FIELDS, PuzzleSet
from dataset.puzzles.reader import PuzzleDataset, PuzzleDatasetConfig

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "data"
SEQ_LEN = 3


def parity_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


def parity_json(name: str) -> dict[str, Any]:
    return json.loads((PARITY / f"{name}.json").read_text())


def write_parity_dataset(folder: Path, run: str) -> Path:
    """Lay out the reference's files of a builder run, "arc/default" for example."""
    arrays, texts = parity_arrays("builder_outputs"), parity_json("builder_outputs")
    with dataset_folder(folder) as partial:
        for split in ("train", "test"):
            puzzles = PuzzleSet(**{field: arrays[f"{run}/{split}/all__{field}"] for field in FIELDS})
            write_split(partial, split, PuzzleDatasetMetadata(**texts[f"{run}/{split}/dataset.json"]), {"all": puzzles})
        write_names(partial, texts[f"{run}/identifiers.json"], texts.get(f"{run}/test_puzzles.json"))
    return folder


def assert_equals_parity(folder: Path, run: str) -> None:
    """The data set in `folder` holds what the reference's builder wrote."""
    texts = parity_json("builder_outputs")
    for name in ("train/dataset.json", "test/dataset.json", "identifiers.json", "test_puzzles.json"):
        wanted = texts.get(f"{run}/{name}")
        assert (json.loads((folder / name).read_text()) if (folder / name).exists() else None) == wanted, name
    wanted_arrays = {key: value for key, value in parity_arrays("builder_outputs").items() if key.startswith(f"{run}/")}
    assert {key.removeprefix(f"{run}/") for key in wanted_arrays} == {
        str(file.relative_to(folder).with_suffix("")) for file in folder.glob("*/*.npy")
    }
    for key, wanted in wanted_arrays.items():
        np.testing.assert_array_equal(np.load(folder / f"{key.removeprefix(run + '/')}.npy"), wanted, err_msg=key)


def write_small_dataset(
    folder: Path,
    group_sizes: tuple[tuple[int, ...], ...] = ((2, 3), (1,), (4, 1, 2)),
    *,
    first_identifier: int | None = 1,
    sets: tuple[str, ...] = ("all",),
    **changes: Any,
) -> Path:
    """Groups of puzzles with the given numbers of examples; row r of set s has the inputs (r, s, puzzle's identifier).

    `first_identifier=None`: all puzzles are blank. `changes` replace fields of dataset.json.
    """
    sizes = [size for group in group_sizes for size in group]
    ids = np.arange(len(sizes)) + first_identifier if first_identifier else np.zeros(len(sizes), dtype=int)
    examples = np.arange(sum(sizes))
    num_ids = int(ids.max()) + 1
    metadata = PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=200,
        seq_len=SEQ_LEN,
        num_puzzle_identifiers=num_ids,
        total_groups=len(group_sizes) * len(sets),
        mean_puzzle_examples=len(examples) / len(sizes),
        total_puzzles=len(sizes),
        sets=list(sets),
    ).model_copy(update=changes)
    arrays = {
        name: PuzzleSet(
            inputs=np.stack([examples, np.full_like(examples, number), np.repeat(ids, sizes)], axis=1).astype(np.uint8),
            labels=np.stack([examples % 3] * SEQ_LEN, axis=1).astype(np.uint8),
            puzzle_identifiers=ids.astype(np.int32),
            puzzle_indices=np.cumsum([0, *sizes]).astype(np.int32),
            group_indices=np.cumsum([0, *map(len, group_sizes)]).astype(np.int32),
        )
        for number, name in enumerate(sets)
    }
    with dataset_folder(folder) as partial:
        for split in ("train", "test"):
            write_split(partial, split, metadata, arrays)
        names = ["<blank>"] * (first_identifier or 1) + [f"puzzle{i}" for i in ids if first_identifier]
        write_names(partial, names)
    return folder


def open_dataset(*folders: Path, split: str = "train", **config: Any) -> PuzzleDataset:
    settings: dict[str, Any] = {"global_batch_size": 4, "test_set_mode": split == "test"} | config
    return PuzzleDataset(PuzzleDatasetConfig(dataset_paths=[str(folder) for folder in folders], **settings), split)
