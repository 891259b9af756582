"""Holds out whole groups of training puzzles, so that a puzzle and its augmented copies stay on one side."""

from collections.abc import Sequence

import numpy as np

from dataset.puzzles.format import PuzzleSet

VALIDATION_SET = "validation"  # what the held-out puzzles of all data sets are called together


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
