"""The picture of an evaluation by depth: how often each held-out set is answered rightly after every supervision step."""

from pathlib import Path
from typing import TYPE_CHECKING

from dataset.files.json_file import read_json
from lab.drawing import draw_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "exact_accuracy"
ByDepth = dict[str, dict[str, float]]  # set -> depth -> accuracy


def read_evaluation(file: Path) -> ByDepth:
    """What inference_instruct.py wrote about every set."""
    expected = "Give the metrics_step_<N>.json that inference_instruct.py writes."
    found: ByDepth = {}
    for name, metrics in read_json(file, dict, expected).items():
        by_depth = metrics.get("by_depth") if isinstance(metrics, dict) else None
        if not isinstance(by_depth, dict) or not by_depth:
            raise ValueError(f"{file} has no by_depth of {name!r}. {expected}")
        try:
            found[name] = {depth: float(values[METRIC]) for depth, values in by_depth.items()}
        except (LookupError, TypeError, ValueError) as problem:
            raise ValueError(f"{file}: by_depth of {name!r} has no number {METRIC} ({problem}). {expected}") from None
    if not found:
        raise ValueError(f"{file} holds no set. {expected}")
    return found


def draw(found: ByDepth) -> "Figure":
    """A line a set, a column a supervision step."""
    from matplotlib.figure import Figure

    depths = list(dict.fromkeys(depth for by_depth in found.values() for depth in by_depth))
    cells = [[by_depth.get(depth, float("nan")) for depth in depths] for by_depth in found.values()]
    figure = Figure(figsize=(2.0 + 0.62 * len(depths), 1.2 + 0.42 * len(found)), dpi=160, layout="constrained")
    axes = figure.subplots()
    draw_cells(axes, cells, depths, list(found))
    axes.set_xlabel("supervision steps")
    axes.set_title("answers that are exactly right", loc="left", fontsize=10)
    return figure
