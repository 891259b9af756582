"""The curves of one run, or of several over each other, from their metrics.jsonl, as a matplotlib figure."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN = "train"  # every other set is held out
PANELS = {
    "lm_loss": "Loss",
    "accuracy": "Token accuracy",
    "exact_accuracy": "Exact accuracy",
    "steps": "ACT steps",
    "lr": "Learning rate",
}
OF_FINISHED_ROWS = ("accuracy", "exact_accuracy", "steps")  # means over `count` rows, of which a step may have none
TABLE_COLUMNS = {"lm_loss": "loss", "accuracy": "token", "exact_accuracy": "exact"}

INK, MUTED, FAINT, GRID = "#2b2f36", "#767c87", "#a9afb9", "#eceef1"
COLORS = ("#c8553d", "#2a7f9e", "#e0a030", "#6a9a4b", "#7b5ea7", "#b5577f", "#4f6d7a", "#8c6d46")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))


class Point(NamedTuple):
    value: float
    weight: float


@dataclass(frozen=True)
class Run:
    name: str
    curves: dict[tuple[str, str], dict[int, Point]]  # (set, metric) -> step -> point

    def sets(self, metric: str) -> list[str]:
        """Sets that have this metric: train first, then the held-out ones."""
        found = [set_name for set_name, its_metric in self.curves if its_metric == metric]
        return sorted(found, key=lambda name: (name != TRAIN, name))


@dataclass(frozen=True)
class Line:
    label: str
    color: str
    dashes: str | tuple[int, tuple[float, ...]]
    is_train: bool
    steps: list[int]
    values: list[float]
    drawn: list[float]  # the values, or their running average where they are many and noisy


def read_run(run_dir: Path) -> Run:
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Give the folder of a run: checkpoints/<project_name>/<run_name>.")
    curves: dict[tuple[str, str], dict[int, Point]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            break  # the run is just writing this line, or was killed while it did
        try:
            line = json.loads(text)
        except ValueError as problem:
            raise ValueError(f"{path}, line {number} is no JSON object: {problem}. Delete that line.") from problem
        for key, value in line.items():
            set_name, _, metric = key.rpartition("/")
            if not set_name or "/" in set_name or metric not in PANELS:
                continue
            weight = line.get(f"{set_name}/count", 1.0) if metric in OF_FINISHED_ROWS else 1.0
            if weight > 0:
                points = curves.setdefault((set_name, metric), {})
                points[line["step"]] = Point(math.nan if value is None else value, weight)
    if not curves:
        wanted = ", ".join(f"{TRAIN}/{metric}" for metric in PANELS)
        raise ValueError(f"{path} has nothing to draw: none of its lines has one of {wanted}.")
    return Run(name=run_dir.resolve().name, curves=curves)


def lines_of(runs: Sequence[Run], metric: str) -> Iterator[Line]:
    """One run has a colour a set. Several have a colour a run: held-out sets thick, with dashes a set; training thin."""
    for run_number, run in enumerate(runs):
        sets = run.sets(metric)
        held_out = [name for name in sets if name != TRAIN]
        for set_name in sets:
            place = 0 if set_name == TRAIN else held_out.index(set_name)
            own_color = MUTED if set_name == TRAIN else COLORS[place % len(COLORS)]
            points = run.curves[set_name, metric]
            values = [point.value for point in points.values()]
            is_noisy = set_name == TRAIN and metric != "lr" and len(values) > 60
            yield Line(
                label="" if len(runs) > 1 or metric == "lr" else set_name,
                color=own_color if len(runs) == 1 else COLORS[run_number],
                dashes=DASHES[place % len(DASHES)] if len(runs) > 1 else "-",
                is_train=set_name == TRAIN and bool(held_out),
                steps=list(points),
                values=values,
                drawn=running_average(list(points.values())) if is_noisy else values,
            )


def running_average(points: Sequence[Point]) -> list[float]:
    """Weighted exponential average over about a fortieth of the curve; gaps stay gaps."""
    keep = 1 - 1 / max(1.0, len(points) / 40)
    result, total, weights = [], 0.0, 0.0
    for value, weight in points:
        if math.isfinite(value):
            total = keep * total + weight * value
            weights = keep * weights + weight
        result.append(total / weights if math.isfinite(value) else math.nan)
    return result


def draw(runs: Sequence[Run]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    metrics = [metric for metric in PANELS if any(run.sets(metric) for run in runs)]
    num_cells = len(metrics) + 1
    num_columns = 2 if num_cells == 4 else min(3, num_cells)
    num_rows = math.ceil(num_cells / num_columns)
    figure = Figure(
        figsize=(4.4 * num_columns, 2.9 * num_rows + 0.5),
        dpi=160,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06),
    )
    title = f"{len(runs)} runs" if len(runs) > 1 else runs[0].name
    figure.suptitle(title, x=0.015, ha="left", fontsize=13, fontweight="bold", color=INK)
    cells = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for metric, axes in zip(metrics, cells, strict=False):
        draw_panel(axes, metric, list(lines_of(runs, metric)), show_noise=len(runs) == 1)
    draw_table(cells[len(metrics)], runs)
    for axes in cells[num_cells:]:
        axes.set_axis_off()
    return figure


def draw_panel(axes: "Axes", metric: str, lines: Sequence[Line], show_noise: bool) -> None:
    for line in lines:
        if show_noise and line.drawn is not line.values:
            axes.plot(line.steps, line.values, color=line.color, linewidth=0.6, alpha=0.25)
        axes.plot(
            line.steps,
            line.drawn,
            color=line.color,
            linestyle=line.dashes,
            linewidth=1.1 if line.is_train else 1.9,
            alpha=0.75 if line.is_train else 1.0,
            marker="o" if len(line.steps) <= 30 else "",
            markersize=3,
        )
    shown = [value for line in lines for value in (line.values if show_noise else line.drawn) if math.isfinite(value)]
    style_axes(axes, metric, shown)
    # Held-out curves matter most: with several runs only theirs are labelled.
    label_ends(axes, metric, [line for line in lines if show_noise or not line.is_train])


def style_axes(axes: "Axes", metric: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_title(PANELS[metric], loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.tick_params(axis="x", length=3, color=FAINT)
    axes.set_xlim(0, 1.02 * axes.dataLim.x1 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    in_thousands = axes.get_xlim()[1] >= 10_000
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda step, _: f"{step / 1000:g}k" if in_thousands and step else f"{step:,.0f}")
    )
    axes.set_xlabel("optimizer step", fontsize=8, color=MUTED)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(metric, value, digits=0)))
    if metric.endswith("accuracy"):
        axes.set_ylim(-0.02, 1.04)
    elif metric == "lm_loss" and values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, 1.08 * max(values, default=1.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=metric == "steps"))


def label_ends(axes: "Axes", metric: str, lines: Sequence[Line]) -> None:
    """Write each curve's name and last value at its right end, pushed apart where they would touch."""
    ends = []
    for line in lines:
        finite = [(step, value) for step, value in zip(line.steps, line.drawn, strict=True) if math.isfinite(value)]
        if finite:
            height = axes.transAxes.inverted().transform(axes.transData.transform(finite[-1]))[1]
            ends.append((float(height), finite[-1][1], line))
    ends.sort(key=lambda end: end[0])
    for height, (_, value, line) in zip(spread([end[0] for end in ends], gap=0.085), ends, strict=True):
        text = f"{line.label}  {readable(metric, value)}".strip()
        weight = "normal" if line.is_train else "bold"
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", size=8, color=line.color, weight=weight)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Push rising heights at least a gap apart: up from below, then down again from the upper end of the axes."""
    result: list[float] = []
    for height in heights:
        result.append(max(height, result[-1] + gap) if result else height)
    ceiling = max(1.0, heights[-1]) if heights else 1.0
    for number in reversed(range(len(result))):
        result[number] = min(result[number], ceiling)
        ceiling = result[number] - gap
    return result


def draw_table(axes: "Axes", runs: Sequence[Run]) -> None:
    """The last values: of every set of one run, or of the first held-out set of each of several."""
    axes.set_axis_off()
    axes.set_title("Last values", loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
    rows: list[tuple[str, str, list[str]]] = []
    for color, run in zip(COLORS, runs, strict=False):
        sets = list(dict.fromkeys(name for metric in PANELS for name in run.sets(metric)))
        held_out = [name for name in sets if name != TRAIN]
        if len(runs) == 1:
            rows += [(TRAIN, MUTED, last_values(run, TRAIN))] * (TRAIN in sets)
            rows += [(name, COLORS[i % len(COLORS)], last_values(run, name)) for i, name in enumerate(held_out)]
        else:
            chosen = (held_out or sets)[0]
            rows.append((f"{run.name}, {chosen}", color, last_values(run, chosen)))
    right_edges = (0.5, 0.75, 1.0)
    lines_a_row = 1 if len(runs) == 1 else 2  # the names of runs are long: their numbers go below
    line_height = min(0.095, 0.9 / (1.2 * lines_a_row * len(rows) + 2))
    for edge, heading in zip(right_edges, TABLE_COLUMNS.values(), strict=True):
        axes.text(edge, 0.97, heading, fontsize=8, color=MUTED, ha="right", va="top")
    y = 0.97 - 1.1 * line_height
    for name, color, cells in rows:
        axes.text(0.0, y, name, fontsize=9, color=color, fontweight="bold", va="top")
        y -= (lines_a_row - 1) * line_height
        for edge, cell in zip(right_edges, cells, strict=True):
            axes.text(edge, y, cell, fontsize=9, color=INK, ha="right", va="top")
        y -= 1.2 * line_height
    remark = "train: running average" if len(runs) == 1 else "thick: held out; thin: train, running average"
    axes.text(0.0, y - 0.3 * line_height, remark, fontsize=8, color=MUTED, va="top")


def last_values(run: Run, set_name: str) -> list[str]:
    cells = []
    for metric in TABLE_COLUMNS:
        drawn = [line.drawn for line in lines_of([run], metric) if line.label == set_name]
        finite = [value for values in drawn for value in values if math.isfinite(value)]
        cells.append(readable(metric, finite[-1]) if finite else "–")
    return cells


def readable(metric: str, value: float, digits: int = 1) -> str:
    if metric.endswith("accuracy"):
        return f"{value:.{digits}%}"
    if metric == "lr":
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"
    return f"{value:.3g}"
