"""What pictures share: colours, a table of accuracies, and the error where matplotlib is missing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, FAINT, PAPER = "#2b2f36", "#767c87", "#c9ced6", "#ffffff"
RED = "#c8553d"


def require_matplotlib() -> None:
    """Say what is missing before anything takes time."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as problem:
        advice = "pip install -r requirements-dev.txt or: pip install -e '.[plots]'"
        raise ValueError(f"Drawing needs matplotlib ({problem}). Install it with: {advice}") from problem


def draw_cells(axes: "Axes", cells: Sequence[Sequence[float]], columns: Sequence[str], lines: Sequence[str]) -> None:
    """A colour and a number for each accuracy."""
    axes.imshow(cells, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for place, line in enumerate(cells):
        for number, value in enumerate(line):
            colour = "white" if value > 0.6 else INK
            axes.text(number, place, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(lines)), lines)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
