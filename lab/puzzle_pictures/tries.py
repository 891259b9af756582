"""What trying puzzles several times gives and costs: how many are solved after 1, 2, 4, ... tries, by each way of choosing."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from dataset.puzzles.samples import Sample, game_of, pick_samples
from engine.build.puzzle_checkpoint import PuzzleModel
from engine.build.puzzles import build_effort
from engine.config.schema import EvalConfig
from engine.tasks.rollouts import CHOICES, ONE_TRY, Effort, is_right, roll_out
from engine.tasks.traces import batch_of
from lab.drawing import FAINT, INK, MUTED, RED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 128  # puzzles that are tried together
ANY = "any"  # at least one of the tries is right: what the best choice could reach
COLOURS = {"noise": MUTED, "disguises": RED}
LINES = {"surest": "--", "vote": "-", ANY: ":"}


@dataclass
class Tried:
    """Of some way to make tries differ: the puzzles solved by each choice after so many tries, and what they took."""

    way: str
    tries: int
    steps: int  # supervision steps of a puzzle
    solved: dict[str, int]
    seconds: float = 0.0


def puzzles_of(model: PuzzleModel, data_path: str | None, count: int | None, seed: int) -> tuple[str, list[Sample]]:
    """Test puzzles of a data set, by default that of the training, and where they are."""
    folder = data_path or (model.config.data_paths_test or model.config.data_paths)[0]
    metadata, samples = pick_samples(folder, count, seed)
    if (found := game_of(metadata, folder)) != model.game:
        raise ValueError(
            f"{folder} holds {found}, while {model.path} was trained on {model.game}. Name another --data-path."
        )
    return folder, samples


def tried(model: PuzzleModel, samples: list[Sample], most: int, noise: float) -> list[Tried]:
    """Every puzzle tried up to `most` times in each way; all rows of a way are of the same tries."""
    wanted: dict[str, dict[str, Any]] = {"noise": {"noise": noise}} if noise else {}
    if model.game.name != "arc":
        wanted["disguises"] = {"disguises": True}
    ways = {
        way: build_effort(
            EvalConfig.model_validate(options | {"rollouts": max(most, 2)}),
            model.config.seed,
            model.metadata,
            str(model.path),
        )
        for way, options in wanted.items()
    }
    if not ways:
        raise ValueError("--noise 0: ARC is not tried in disguises, so all tries would be alike. Give a larger noise.")
    depth = ONE_TRY.depth_of(model.head.model.config)
    model.head.eval()
    model.head.model.inner.depth = depth
    counts = [1 << power for power in range(most.bit_length())]
    found = {
        (way, count): Tried(way, count, count * depth.max_steps, dict.fromkeys((*CHOICES, ANY), 0))
        for way in ways
        for count in counts
    }
    with tqdm(total=len(samples) * (1 + len(ways) * (counts[-1] - 1)), file=sys.stderr, unit=" tries") as bar:
        for first in range(0, len(samples), ROWS):
            rows = samples[first : first + ROWS]
            of_rows(model, rows, ways, found, bar)
    return list(found.values())


@torch.no_grad()
def of_rows(
    model: PuzzleModel,
    rows: list[Sample],
    ways: dict[str, Effort],
    found: dict[tuple[str, int], Tried],
    bar: tqdm,
) -> None:
    """Add what these puzzles give; the first try, which is plain, is that of every way."""
    batch = model.runtime.to_device(batch_of(rows))
    plain = None
    for way, effort in ways.items():
        choices = {name: choice() for name, choice in CHOICES.items()}
        right = torch.zeros(len(rows), dtype=torch.bool)
        seconds = 0.0
        for number in range(max(count for _, count in found)):
            if number > 0 or plain is None:
                began = time.perf_counter()
                _, outputs = roll_out(model.head.model, batch, effort, number)
                is_solved = is_right(outputs, batch).cpu()  # waits for the device
                took = time.perf_counter() - began
                bar.update(len(rows))
                if number == 0:
                    plain = outputs, is_solved, took
            else:
                outputs, is_solved, took = plain
            seconds += took
            right |= is_solved
            for choice in choices.values():
                choice.add(number, outputs)
            if (row := found.get((way, number + 1))) is not None:
                row.seconds += seconds
                row.solved[ANY] += int(right.sum())
                for name, choice in choices.items():
                    row.solved[name] += int(is_right(choice.best, batch).sum())


def table(found: Sequence[Tried], puzzles: int) -> str:
    """Markdown, a row a way and number of tries."""
    head = ["tries", "supervision steps", "seconds", *CHOICES, "any of them right"]
    lines = [["tries differ by", *head], ["---"] * (1 + len(head))]
    for row in found:
        shares = [f"{solved / puzzles:.3f}" for solved in row.solved.values()]
        lines.append([row.way, str(row.tries), str(row.steps), f"{row.seconds:.1f}", *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Sequence[Tried], puzzles: int, title: str) -> "Figure":
    """Puzzles solved by the supervision steps they were given: a colour a way, a kind of line a choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(row.way for row in found):
        rows = [row for row in found if row.way == way]
        for name, style in LINES.items():
            shares = [row.solved[name] / puzzles for row in rows]
            steps = [row.steps for row in rows]
            axes.plot(steps, shares, style, marker="o", ms=4, color=COLOURS[way], label=f"{way}, {name}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("supervision steps a puzzle")
    axes.set_ylabel("puzzles solved")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, alpha=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure
