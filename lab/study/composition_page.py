"""The section of the page about questions of known depth: its tables and its pictures."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.drawing import FAINT, INK, MUTED, RED, draw_cells
from lab.study.trials import Row, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = dict[str, list[Trial]]  # of a table: label -> the runs that it is the mean of
SHOWN = ("id2", "id4", "id6", "ood2")
COLOURS = {"dense": MUTED, "looped": RED, "TRM": "#1f7396"}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))


class Blocks(NamedTuple):
    """The runs of every table."""

    sweep: Lines
    short: Lines
    options: Lines
    long: Lines


def section(blocks: Blocks, results: Mapping[Trial, Row], page: Path) -> str:
    """All tables, and the pictures that are drawn beside the page."""
    hops, passes = (page.with_name(f"{page.stem}_{name}.png") for name in ("hops", "passes"))
    parts = []
    for title, lines in (("", blocks.short), ("", blocks.long), ("One option at a time", blocks.options)):
        if lines:
            budget = next(iter(lines.values()))[0].budget
            title = title or "Every family at its own best learning rate"
            parts += [f"### {title}, {budget / 1e9:,.0f} GFLOP a run", table(lines, results)]
    draw_hops(blocks.long or blocks.short, results, hops)
    parts += [f"![accuracy by hops]({hops.name})"]
    looped = {name: trials for name, trials in blocks.long.items() if name.startswith("looped")}
    if looped:
        draw_passes(rows_of(next(iter(looped.values())), results), passes)
        parts += [f"![accuracy by hops and passes]({passes.name})"]
    parts += ["### How the learning rates were chosen", sweep_table(blocks.sweep, results), time_of(blocks, results)]
    return "\n\n".join(parts)


def rows_of(trials: Sequence[Trial], results: Mapping[Trial, Row]) -> list[Row]:
    return [results[trial] for trial in trials]


def accuracy(row: Row, set_name: str, depth: int) -> float | None:
    """Of a set after so many supervision steps; 0 if the run diverged, None where there is no such number."""
    if not row["metrics"]:
        return 0.0
    found: float | None = row["metrics"].get(set_name, {}).get(f"depth_{depth}/exact_accuracy")
    return found


def validation(row: Row) -> tuple[float, float]:
    """What settings are chosen by: how often the answer is right after the trained passes, then how sure it is."""
    loss = row["metrics"].get("validation", {}).get(f"depth_{row['depth']}/token_loss", float("inf"))
    return accuracy(row, "validation", row["depth"]) or 0.0, -loss


def depths_of(row: Row) -> list[int]:
    """The trained passes, and half as many again, at least one more, of a model that can be applied so often."""
    trained = row["depth"]
    more = trained + max(1, trained // 2)
    return [trained, more] if accuracy(row, "id2", more) is not None else [trained]


def table(lines: Lines, results: Mapping[Trial, Row]) -> str:
    """A line a model after the passes that it was trained with, and a line after more of them."""
    written = [
        f"| model | trunk parameters | lr | steps | seconds | passes | {' | '.join(SHOWN)} |",
        "| --- " * (6 + len(SHOWN)) + "|",
    ]
    for label, trials in lines.items():
        rows = rows_of(trials, results)
        first, seconds = rows[0], statistics.mean(row["cpu_seconds"] for row in rows)
        facts = [label, f"{first['parameters_trunk']:,}", rate_of(trials[0]), str(first["steps"]), f"{seconds:.0f}"]
        for depth in depths_of(first):
            found = [spread([accuracy(row, name, depth) for row in rows]) for name in SHOWN]
            written.append(f"| {' | '.join([*facts, str(depth), *found])} |")
            facts = [""] * len(facts)
    return "\n".join(written)


def rate_of(trial: Trial) -> str:
    """The learning rate, which is what the sweep chooses."""
    return next(word.partition("=")[2] for word in (trial.settings or ()) if word.startswith("lr="))


def spread(values: Sequence[float | None]) -> str:
    """The mean, and the range where there is one."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    low, high = f"{min(numbers):.2f}", f"{max(numbers):.2f}"
    return f"{statistics.mean(numbers):.2f}" + (f" ({low} to {high})" if low != high else "")


def sweep_table(lines: Lines, results: Mapping[Trial, Row]) -> str:
    """Validation accuracy of every point, the chosen one in bold."""
    points = [rate_of(trial) for trial in next(iter(lines.values()))]
    written = [f"| lr | {' | '.join(points)} |", "| --- " * (1 + len(points)) + "|"]
    for label, trials in lines.items():
        scores = [validation(row) for row in rows_of(trials, results)]
        cells = [f"**{score[0]:.2f}**" if score == max(scores) else f"{score[0]:.2f}" for score in scores]
        written.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(written)


def time_of(blocks: Iterable[Lines], results: Mapping[Trial, Row]) -> str:
    trials = {trial for lines in blocks for trials in lines.values() for trial in trials}
    minutes = sum(results[trial]["cpu_seconds"] for trial in trials) / 60
    return (
        f"{len(trials)} runs, {minutes:.0f} minutes of processor time in all: {minutes / 2:.0f} minutes on two cores."
    )


def draw_hops(lines: Lines, results: Mapping[Trial, Row], picture: Path) -> None:
    """Accuracy of every family by the hops of a question, with the trained passes and with more of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, is_deeper in zip(
        panels, ("as many passes as trained", "half as many passes again"), (False, True), strict=True
    ):
        styles = dict.fromkeys(COLOURS, 0)
        for label, trials in lines.items():
            rows = rows_of(trials, results)
            depth, kind = depths_of(rows[0])[-1 if is_deeper else 0], label.split()[0].rstrip(",")
            draw_line(axes, label, rows, depth, COLOURS[kind], DASHES[styles[kind]])
            styles[kind] += 1
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("hops of the question")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color=FAINT, alpha=0.5)
    panels[0].set_ylabel("held-out answers that are right")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.savefig(picture, dpi=120)


def draw_line(axes: "Axes", label: str, rows: Sequence[Row], depth: int, colour: str, dashes: Any) -> None:
    """The mean over worlds, and their range as a band."""
    hops = hops_of(rows)
    values = [[accuracy(row, f"id{k}", depth) or 0.0 for row in rows] for k in hops]
    axes.plot(hops, [statistics.mean(v) for v in values], marker="o", ms=4, color=colour, linestyle=dashes, label=label)
    axes.fill_between(hops, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(hops)


def hops_of(rows: Sequence[Row]) -> list[int]:
    """Of the questions that were asked; a run that diverged has none."""
    hops = {int(name[2:]) for row in rows for name in row["metrics"] if name.startswith("id")}
    if not hops:
        raise ValueError(
            f"All runs of {rows[0]['variant']} diverged: there is nothing to show. Lower the learning rate."
        )
    return sorted(hops)


def mean_by_depth(rows: Sequence[Row], set_name: str) -> list[float]:
    """Accuracy of a set after each pass, the mean over worlds."""
    found: list[float] = []
    for depth in count(1) if any(row["metrics"] for row in rows) else ():
        values = [accuracy(row, set_name, depth) for row in rows]
        if None in values:
            break
        found.append(statistics.mean(value or 0.0 for value in values))
    return found


def draw_passes(rows: Sequence[Row], picture: Path) -> None:
    """Accuracy by hops and passes, a number a cell."""
    from matplotlib.figure import Figure

    hops = hops_of(rows)
    cells = [mean_by_depth(rows, f"id{k}") for k in hops]
    figure = Figure(figsize=(1.6 + 0.5 * len(cells[0]), 1.2 + 0.4 * len(hops)), layout="constrained")
    axes = figure.subplots()
    draw_cells(axes, cells, [str(depth + 1) for depth in range(len(cells[0]))], [f"{k} hops" for k in hops])
    axes.set_xlabel("passes")
    figure.savefig(picture, dpi=120)
