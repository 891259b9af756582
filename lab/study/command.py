"""The command line of the studies: which one, how much of it, and where its results and its page are."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.files.flags import positive

STUDIES = {
    "conversations": "variants of text recursion on the built-in conversations, with one learning rate for all",
    "composition": "questions of known depth: every family at its own best learning rate",
    "puzzles": "6x6 Sudoku: TRM, a looped and plain networks, each at its own best learning rate",
    "depth": "the demonstration: one layer applied again, beside a plain network, on questions of known depth",
}
RESULTS = Path("checkpoints/study")
INTERRUPTED = "the runs that had ended are kept; the same command trains the others"


def main(name: str | None = None, description: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Carry out the study of this name, or the one that the first word names."""
    parser = argparse.ArgumentParser(
        prog=None if name else "python -m lab.study",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name is None:
        subparsers = parser.add_subparsers(dest="study", required=True)
        for study, about in STUDIES.items():
            add_flags(study, subparsers.add_parser(study, help=about, description=about))
    else:
        add_flags(name, parser)
    given = vars(parser.parse_args(arguments))
    run(name or given.pop("study"), **given)


def add_flags(study: str, parser: argparse.ArgumentParser) -> None:
    worlds, budgets, tflop = "of each variant", "of each run", 20.0
    results, page, jobs = "results.jsonl", Path("docs/text_recursion.md"), min(2, os.cpu_count() or 1)
    if study == "composition":
        worlds, budgets = "worlds, beside the one in which settings are chosen", "of every run, and of the longer ones"
        results = "composition.jsonl"
    if study == "puzzles":
        worlds, budgets = "beside the one that chooses learning rates", "of each run that is reported"
        tflop, results, page, data = 4.0, "puzzles.jsonl", Path("docs/puzzle_recursion.md"), RESULTS / "sudoku-6x6"
        parser.add_argument("--data", type=Path, default=data, help="puzzles; made there if there are none")
    if study == "depth":
        worlds, tflop, results, page, jobs = "worlds", 0.0, "depth.jsonl", RESULTS / "depth_FORM.md", 1
        budgets = "of each run; default: 1 for symbols, 4.1 for sentences"
        parser.add_argument("--form", choices=["symbols", "sentences"], default="symbols", help="of the questions")
    else:
        parser.add_argument("--variants", nargs="*", help="names from the table; default: all")
        parser.add_argument("--overrides", nargs="*", default=[], help="Hydra overrides for all variants")
    parser.add_argument("--seeds", type=positive, default=3, help=worlds)
    parser.add_argument(
        "--tflop",
        type=positive_number,
        nargs=2 if study == "composition" else None,
        default=[0.75, 1.5] if study == "composition" else tflop,
        help=f"compute {budgets}, in 10^12 operations",
    )
    parser.add_argument("--results", type=Path, default=RESULTS / results, help="what has been trained")
    parser.add_argument("--page", type=Path, default=page, help="default: %(default)s")
    parser.add_argument("--jobs", type=positive, default=jobs, help="runs at the same time, each on one thread")


def run(study: str, jobs: int, results: Path, page: Path, **settings: Any) -> None:
    # Late, so that --help needs nothing but the flags.
    from engine.entry import user_errors
    from lab.study.composition import Composition
    from lab.study.conversations import Conversations
    from lab.study.depth import Depth
    from lab.study.puzzles import Puzzles
    from lab.study.run import run_study

    if study == "depth":
        form = settings["form"]
        settings["tflop"] = settings["tflop"] or {"symbols": 1.0, "sentences": 4.1}[form]
        page = page.with_name(page.name.replace("FORM", form))
    studies = {"conversations": Conversations, "composition": Composition, "puzzles": Puzzles, "depth": Depth}
    with user_errors(INTERRUPTED):
        run_study(studies[study](**settings), jobs=jobs, results=results, page=page)


def positive_number(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
