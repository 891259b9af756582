"""Reads data sets in the on-disk format and yields batches: seeded groups for training, rows in order for testing.

All ranks (and loader workers) draw the same global batch from (seed, iteration), and each reads only its own rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem, PuzzleDatasetMetadata
from dataset.cursor import ResumableDataset, check_ranks, epochs_of, is_for_this_worker
from dataset.puzzles.disguises import Disguises
from dataset.puzzles.format import PuzzleSet, PuzzleSplit, open_split
from dataset.puzzles.mixing import identifier_offsets, merged_metadata

VALIDATION_SET = "validation"  # what the held-out puzzles of all data sets are called together


class PuzzleDatasetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dataset_paths: list[str] = Field(min_length=1)
    global_batch_size: int = Field(ge=1)
    test_set_mode: bool  # rows in order, nothing dropped, the last batch padded
    epochs_per_iter: int = Field(default=1, ge=1)  # training: how many times one iteration visits every group
    epochs: int | None = Field(default=None, ge=1)  # of all iterations; the last one may be shorter
    seed: int = Field(default=0, ge=0)
    rank: int = Field(default=0, ge=0)
    num_replicas: int = Field(default=1, ge=1)
    # The data sets whose puzzle identifiers are numbered together; None: dataset_paths. A test reader that opens only
    # some of the training folders names all of them here, so that its identifiers are those that were trained.
    identifier_paths: list[str] | None = None
    # The share of the groups that is held out. Training reads the others; test_set_mode reads the held-out ones, each
    # without its augmented copies, as one set.
    validation_split: float = Field(default=0.0, ge=0, lt=1)
    disguises: bool = False  # training: every example in another disguise each time it is drawn

    @model_validator(mode="after")
    def _check(self) -> "PuzzleDatasetConfig":
        check_ranks(self.global_batch_size, self.rank, self.num_replicas, "num_replicas")
        if len(set(self.dataset_paths)) != len(self.dataset_paths):
            raise ValueError(f"A data set is named twice in dataset_paths={self.dataset_paths}. Name each one once.")
        missing = set(self.dataset_paths) - set(self.identifier_paths or self.dataset_paths)
        if missing:
            raise ValueError(f"identifier_paths must contain every data path; it lacks {sorted(missing)}.")
        return self


def plan_iteration(
    puzzles: PuzzleSet, groups: np.ndarray, seed: int, epochs: int, global_batch_size: int
) -> list[np.ndarray]:
    """Draw a puzzle of each group, `epochs` times; returns the puzzles of each batch, of which the last may be cut.

    What fills no batch at the end is left out.
    """
    rng = np.random.Generator(np.random.Philox(seed=seed))
    bounds = puzzles.group_indices.astype(np.int64)
    order = groups[np.concatenate([rng.permutation(len(groups)) for _ in range(epochs)])]
    drawn = rng.integers(bounds[order], bounds[order + 1])
    filled = np.cumsum(np.diff(puzzles.puzzle_indices.astype(np.int64))[drawn])

    batches: list[np.ndarray] = []
    start, used = 0, 0
    while True:
        last = int(np.searchsorted(filled, used + global_batch_size))  # the puzzle that fills the batch
        if last == len(drawn):
            return batches
        batches.append(drawn[start : last + 1])
        start, used = last + 1, int(filled[last])


def shuffled_examples(
    puzzle_indices: np.ndarray, drawn: np.ndarray, limit: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """All examples of the drawn puzzles, shuffled within each puzzle, at most `limit`: (examples, their puzzles)."""
    starts = puzzle_indices[drawn].astype(np.int64)
    sizes = puzzle_indices[drawn + 1].astype(np.int64) - starts
    visit = np.repeat(np.arange(len(drawn)), sizes)  # which of the drawn puzzles a row belongs to
    examples = starts[visit] + np.arange(len(visit)) - (np.cumsum(sizes) - sizes)[visit]
    keys = np.random.Generator(np.random.Philox(seed=seed)).random(len(visit))
    shuffle = np.lexsort((keys, visit))[:limit]
    return examples[shuffle], drawn[visit[shuffle]]


def is_held_out(num_groups: int, share: float, seed: Sequence[int]) -> np.ndarray:
    """Which groups (num_groups,) are held out: as near to the share as whole groups come, and at least one."""
    if num_groups < 2:
        raise ValueError(
            f"validation_split={share:g} cannot divide a set of {num_groups} group(s) of puzzles: one must be left for "
            "training and one for validation. Set eval.validation_split=0, or build more puzzles."
        )
    rank = np.random.Generator(np.random.Philox(seed=list(seed))).random(num_groups).argsort(kind="stable").argsort()
    chosen: np.ndarray = rank < min(max(round(share * num_groups), 1), num_groups - 1)
    return chosen


def originals(puzzles: PuzzleSet, groups: np.ndarray) -> np.ndarray:
    """The examples of the first puzzle of each group, in order; the others are its augmented copies."""
    first = puzzles.group_indices[groups].astype(np.int64)
    ranges = zip(puzzles.puzzle_indices[first], puzzles.puzzle_indices[first + 1], strict=True)
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


def check_identifiers(sets: Sequence[tuple[PuzzleSet, np.ndarray]], share: float, blank: int) -> None:
    """Refuse to hold out puzzles that nothing but their own training can make known, given who is held out."""
    held_out, trained = {blank}, {blank}
    for puzzles, mask in sets:
        of_puzzle = np.repeat(mask, np.diff(puzzles.group_indices))
        held_out |= set(puzzles.puzzle_identifiers[of_puzzle].tolist())
        trained |= set(puzzles.puzzle_identifiers[~of_puzzle].tolist())
    unknown = held_out - trained
    if unknown:
        raise ValueError(
            f"validation_split={share:g} would hold out {len(unknown)} puzzle identifiers altogether. A puzzle's "
            "identifier has an embedding that only training on this puzzle fills, as in ARC, so a score on puzzles "
            "that were held out would say nothing. Set eval.validation_split=0 and use the test split."
        )


class PuzzleDataset(ResumableDataset):
    """Draws a puzzle of every group in training; yields all examples in order with `test_set_mode`."""

    def __init__(self, config: PuzzleDatasetConfig, split: str = "train") -> None:
        super().__init__(config.test_set_mode)
        self.config = config
        self.split = split
        self._splits: list[PuzzleSplit] | None = self._open(check=True)
        # Of all data paths together; `sets` has the names that the items carry.
        self.metadata: PuzzleDatasetMetadata = merged_metadata(
            self._splits, config.identifier_paths or config.dataset_paths
        )
        self._groups = self._groups_to_read()
        self._disguises = None
        if config.disguises and not config.test_set_mode:
            self._disguises = Disguises(self.metadata, ", ".join(config.dataset_paths))
        if not config.test_set_mode:
            self._check_enough(self._splits)

    def num_batches(self, iteration: int = 1) -> int:
        """How many batches one iteration yields; in training it varies a little with the puzzles drawn."""
        if self.config.test_set_mode:
            sizes = [len(self._test_rows(index)) for index in range(len(self._groups))]
            return sum(-(-size // self.config.global_batch_size) for size in sizes)
        return sum(len(self._plan(iteration, index)) for index in range(len(self._groups)))

    def checksum(self) -> int:
        """Of rows spread over every set, and of how many there are: equal for equal data."""
        found = 0
        for _, puzzles in self._sets():
            rows = np.unique(np.linspace(0, puzzles.num_examples - 1, 64).astype(np.int64))
            found = crc32(puzzles.inputs[rows].tobytes(), crc32(rows.tobytes(), found))
        return found

    def _train_items(self, iteration: int, skip: int) -> Iterator[LoaderItem]:
        size = self.config.global_batch_size
        local = size // self.config.num_replicas
        mine = slice(self.config.rank * local, (self.config.rank + 1) * local)
        position = 0
        for index, (name, puzzles) in enumerate(self._sets()):
            for number, drawn in enumerate(self._plan(iteration, index)):
                if position >= skip and is_for_this_worker(position - skip):
                    seed = [self.config.seed, self._stream(iteration, index), number]
                    rows, owners = shuffled_examples(puzzles.puzzle_indices, drawn, size, seed)
                    places = range(size)[mine]
                    yield (
                        name,
                        self._batch(puzzles, rows[mine], owners[mine], local, [[*seed, i] for i in places]),
                        size,
                    )
                position += 1
        if skip > position:
            raise ValueError(
                f"Cannot skip {skip} batches of iteration {iteration}, it has {position}. The data set, the batch size "
                "or the epochs per iteration are not those of the run that is resumed."
            )

    def _test_items(self) -> Iterator[LoaderItem]:
        size = self.config.global_batch_size
        local = size // self.config.num_replicas
        position = 0
        for index, (name, puzzles) in enumerate(self._sets()):
            name = VALIDATION_SET if self.config.validation_split else name
            examples = self._test_rows(index)
            for start in range(0, len(examples), size):
                if is_for_this_worker(position):
                    stop = min(start + size, len(examples))
                    first = min(start + self.config.rank * local, stop)
                    rows = examples[first : min(first + local, stop)]
                    owners = np.searchsorted(puzzles.puzzle_indices, rows, side="right") - 1
                    yield name, self._batch(puzzles, rows, owners, local), stop - start
                position += 1

    def _batch(
        self, puzzles: PuzzleSet, rows: np.ndarray, owners: np.ndarray, size: int, seeds: Sequence[Sequence[int]] = ()
    ) -> Batch:
        """Read rows and pad them to `size`; with disguises each is in the one of its seed."""

        def padded(array: np.ndarray, value: int) -> torch.Tensor:
            full = np.full((size, *array.shape[1:]), value, dtype=np.int32)
            full[: len(array)] = array
            return torch.from_numpy(full)

        metadata = self.metadata
        boards, answers = puzzles.inputs[rows], puzzles.labels[rows]
        if self._disguises is not None:
            drawn = [self._disguises.draw(seed) for seed, _ in zip(seeds, rows, strict=False)]
            boards, answers = (
                np.stack([disguise.of(board) for disguise, board in zip(drawn, each, strict=True)])
                for each in (boards, answers)
            )
        labels = padded(answers, IGNORE_LABEL_ID)
        if metadata.ignore_label_id is not None:
            labels[labels == metadata.ignore_label_id] = IGNORE_LABEL_ID
        return {
            "inputs": padded(boards, metadata.pad_id),
            "labels": labels,
            "puzzle_identifiers": padded(puzzles.puzzle_identifiers[owners], metadata.blank_identifier_id),
        }

    def _stream(self, iteration: int, set_index: int) -> int:
        """Every set of every iteration has a random stream of its own, numbered from 1."""
        return (iteration - 1) * len(self._groups) + set_index + 1

    def _plan(self, iteration: int, set_index: int) -> list[np.ndarray]:
        config, (_, puzzles) = self.config, self._sets()[set_index]
        seed = config.seed + self._stream(iteration, set_index)
        groups = self._groups[set_index]
        epochs = len(epochs_of(iteration, config.epochs_per_iter, config.epochs))
        return plan_iteration(puzzles, groups, seed, epochs, config.global_batch_size)

    def _groups_to_read(self) -> list[np.ndarray]:
        """Of each set all groups, or those on this reader's side of the validation split, which alone are counted."""
        sets, share = [puzzles for _, puzzles in self._sets()], self.config.validation_split
        counts = [len(puzzles.group_indices) - 1 for puzzles in sets]
        if not all(puzzles.num_examples for puzzles in sets):
            raise ValueError(
                f"A set of {', '.join(self.config.dataset_paths)} holds no examples. Rebuild the data set."
            )
        if not share:
            return [np.arange(count) for count in counts]
        masks = [is_held_out(count, share, [self.config.seed, index]) for index, count in enumerate(counts)]
        check_identifiers(list(zip(sets, masks, strict=True)), share, self.metadata.blank_identifier_id)
        groups = [np.flatnonzero(mask == self.config.test_set_mode) for mask in masks]
        self.metadata = self.metadata.model_copy(update={"total_groups": sum(map(len, groups))})
        return groups

    def _test_rows(self, set_index: int) -> np.ndarray:
        """The examples of a test pass, in order."""
        _, puzzles = self._sets()[set_index]
        if not self.config.validation_split:
            return np.arange(puzzles.num_examples)
        return originals(puzzles, self._groups[set_index])

    def _sets(self) -> list[tuple[str, PuzzleSet]]:
        if self._splits is None:
            self._splits = self._open(check=False)
        arrays = [puzzles for split in self._splits for puzzles in split.sets.values()]
        return list(zip(self.metadata.sets, arrays, strict=True))

    def _open(self, check: bool) -> list[PuzzleSplit]:
        splits = [open_split(path, self.split, check) for path in self.config.dataset_paths]
        offsets = identifier_offsets(self.config.identifier_paths or self.config.dataset_paths)
        for index, path in enumerate(self.config.dataset_paths):
            blank = splits[index].metadata.blank_identifier_id
            sets = {name: _renumbered(puzzles, blank, offsets[path]) for name, puzzles in splits[index].sets.items()}
            splits[index] = replace(splits[index], sets=sets)
        return splits

    def _check_enough(self, splits: list[PuzzleSplit]) -> None:
        size = self.config.global_batch_size
        epochs = len(epochs_of(1, self.config.epochs_per_iter, self.config.epochs))
        named = [(split.folder, *item) for split in splits for item in split.sets.items()]
        for index, (folder, name, puzzles) in enumerate(named):
            largest = np.maximum.reduceat(np.diff(puzzles.puzzle_indices), puzzles.group_indices[:-1])
            # A group gives the examples of one of its puzzles.
            available = int(largest[self._groups[index]].sum()) * epochs
            if available < size:
                raise ValueError(
                    f"No train batches available: {available} examples, global_batch_size={size} (set '{name}' in "
                    f"{folder}, {epochs} epoch(s) between evaluations). Lower the batch size, raise epochs or "
                    "eval_interval, or build more puzzles."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_splits": None}  # a pickled memory map would carry its whole content to a worker


def _renumbered(puzzles: PuzzleSet, blank: int, offset: int) -> PuzzleSet:
    ids = puzzles.puzzle_identifiers
    return replace(puzzles, puzzle_identifiers=np.where(ids == blank, ids, ids + offset))
