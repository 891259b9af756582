"""The curves of one run, or of several over each other, from their metrics.jsonl, as a matplotlib figure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.train.tracking.metrics_file import METRICS_FILE, read_lines
from lab.drawing import FAINT, INK, MUTED, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN = "train"  # every other set is held out
PANELS = {
    "token_loss": "Loss per token",
    "lm_loss": "Loss, mean over examples",
    "token_accuracy": "Token accuracy",
    "accuracy": "Accuracy, mean over examples",
    "exact_accuracy": "Exact accuracy",
    "steps": "ACT steps",
    "lr": "Learning rate",
}
OF_FINISHED_ROWS = ("accuracy", "exact_accuracy", "steps")  # means over `count` rows, of which a step may have none
OF_DISTILLATION = {"ce": "token_loss", "accuracy": "token_accuracy"}  # means over tokens, as its training names them

GRID = "#eceef1"
COLORS = (RED, "#2a7f9e", "#e0a030", "#6a9a4b", "#7b5ea7", "#b5577f", "#4f6d7a", "#8c6d46")
HEADING: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": INK, "pad": 8}
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
    """The curve of one metric on one set of a run."""

    run: Run
    set_name: str
    color: str
    dashes: str | tuple[int, tuple[float, ...]]
    is_thin: bool  # training, where there is a held-out curve beside it
    steps: list[int]
    values: list[float]
    drawn: list[float]  # the values, or their running average where they are many and noisy

    @property
    def style(self) -> dict[str, Any]:
        width, alpha = (1.1, 0.75) if self.is_thin else (1.9, 1.0)
        return {"color": self.color, "linestyle": self.dashes, "linewidth": width, "alpha": alpha}

    @property
    def last(self) -> tuple[int, float] | None:
        """The last step with a finite value, and that value."""
        points = zip(reversed(self.steps), reversed(self.drawn), strict=True)
        return next(((step, value) for step, value in points if math.isfinite(value)), None)


def read_run(run_dir: Path) -> Run:
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Give the folder of a run: checkpoints/<project_name>/<run_name>.")
    curves: dict[tuple[str, str], dict[int, Point]] = {}
    for _, line in read_lines(path):
        for key, value in line.items():
            set_name, _, metric = key.rpartition("/")
            if f"{set_name}/ce" in line:
                metric = OF_DISTILLATION.get(metric, metric)
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
    for run_color, run in zip(COLORS, runs, strict=False):
        sets = run.sets(metric)
        held_out = [name for name in sets if name != TRAIN]
        for set_name in sets:
            place = 0 if set_name == TRAIN else held_out.index(set_name)
            set_color = MUTED if set_name == TRAIN else COLORS[place % len(COLORS)]
            points = run.curves[set_name, metric]
            values = [point.value for point in points.values()]
            is_noisy = set_name == TRAIN and metric != "lr" and len(values) > 60
            yield Line(
                run=run,
                set_name=set_name,
                color=set_color if len(runs) == 1 else run_color,
                dashes=DASHES[place % len(DASHES)] if len(runs) > 1 else "-",
                is_thin=set_name == TRAIN and bool(held_out),
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
    """A panel a metric, and one that says what the colours and dashes stand for."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = {metric: found for metric in PANELS if (found := list(lines_of(runs, metric)))}
    num_cells = len(lines) + 1
    num_columns = 2 if num_cells == 4 else min(3, num_cells)
    num_rows = math.ceil(num_cells / num_columns)
    figure = Figure(
        figsize=(4.4 * num_columns, 2.9 * num_rows + 0.5),
        dpi=160,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06),
    )
    title = f"{len(runs)} runs" if len(runs) > 1 else runs[0].name
    figure.suptitle(title, x=0.015, ha="left", fontsize=13, fontweight="bold", color=INK)
    grid = figure.add_gridspec(num_rows, num_columns)
    for cell, (metric, found) in enumerate(lines.items()):
        draw_panel(figure.add_subplot(grid[cell]), metric, found, is_alone=len(runs) == 1)
    draw_key(figure.add_subplot(grid[len(lines)]), runs, [line for found in lines.values() for line in found])
    return figure


def draw_panel(axes: "Axes", metric: str, lines: Sequence[Line], is_alone: bool) -> None:
    for line in lines:
        if is_alone and line.drawn is not line.values:
            axes.plot(line.steps, line.values, color=line.color, linewidth=0.6, alpha=0.25)
        marker = "o" if len(line.steps) <= 30 else ""
        axes.plot(line.steps, line.drawn, **line.style, marker=marker, markersize=3)
    shown = [value for line in lines for value in (line.values if is_alone else line.drawn) if math.isfinite(value)]
    style_axes(axes, metric, shown)
    if is_alone:
        label_ends(axes, metric, lines, with_names=metric != "lr")
    else:  # held-out curves matter most: only theirs are labelled
        label_ends(axes, metric, [line for line in lines if not line.is_thin], with_names=False)


def style_axes(axes: "Axes", metric: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_title(PANELS[metric], **HEADING)
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
    elif metric.endswith("loss") and values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, 1.08 * max(values, default=1.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=metric == "steps"))


def label_ends(axes: "Axes", metric: str, lines: Sequence[Line], with_names: bool) -> None:
    """Write each curve's last value at its right end, pushed apart where they would touch."""
    to_height = axes.transData + axes.transAxes.inverted()
    ends = [(float(to_height.transform(line.last)[1]), line) for line in lines if line.last is not None]
    ends.sort(key=lambda end: end[0])
    for height, (_, line) in zip(spread([height for height, _ in ends], gap=0.085), ends, strict=True):
        text = f"{line.set_name}  {last_value(metric, line)}" if with_names else last_value(metric, line)
        weight = "normal" if line.is_thin else "bold"
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


def draw_key(axes: "Axes", runs: Sequence[Run], lines: Sequence[Line]) -> None:
    """What colours, dashes and widths stand for: the runs where there are several, then the sets."""
    is_alone = len(runs) == 1
    for color, run in zip(COLORS, [] if is_alone else runs, strict=False):
        axes.plot([], color=color, linewidth=1.9, label=run.name)
    for line in {line.set_name: line for line in reversed(lines)}.values():  # the first one of each set
        label = f"{line.set_name}, running average" if line.drawn is not line.values else line.set_name
        axes.plot([], **line.style if is_alone else line.style | {"color": MUTED}, label=label)
    axes.set_axis_off()
    axes.set_title("Key", **HEADING)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor="linecolor", borderaxespad=0)


def last_value(metric: str, line: Line) -> str:
    return readable(metric, line.last[1]) if line.last else "–"


def readable(metric: str, value: float, digits: int = 1) -> str:
    if metric.endswith("accuracy"):
        return f"{value:.{digits}%}"
    if metric == "lr":
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"
    return f"{value:.3g}"
