"""The study of text recursion on the built-in conversations: dense, looped and TRM models of equal compute."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.train.evaluate import Report
from lab.study.trials import Row, Study, Trial

HALF_CURRICULUM = "arch.depth_curriculum=[{until: 0.5, H_cycles: 1, L_cycles: 1}]"
H1_L2, H2_L2 = (["arch.L_cycles=2", f"arch.H_cycles={cycles}", "arch.halt_max_steps=1"] for cycles in (1, 2))
TWO_STEPS = "arch.halt_max_steps=2"
VARIANTS: dict[str, list[str]] = {
    "dense, 2 layers": ["arch=dense_text", "arch.H_layers=2"],
    "dense, 4 layers": ["arch=dense_text", "arch.H_layers=4"],
    "dense, 6 layers": ["arch=dense_text", "arch.H_layers=6"],
    "looped, 3 passes": ["arch=looped_text", "arch.H_layers=2"],
    "TRM H1 L1": ["arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1"],
    "TRM H1 L2": H1_L2,
    "TRM H1 L2, post-norm": [*H1_L2, "arch.norm=post"],
    "TRM H1 L2, embedding start": [*H1_L2, "arch.latent_init=embedding"],
    "TRM H1 L2, 2 steps sampled": [*H1_L2, TWO_STEPS, "arch.halt_mean_steps=1.5"],
    "TRM H2 L2": H2_L2,
    "TRM H2 L2, last cycle": [*H2_L2, "arch.grad_cycles=last_cycle", "arch.supervise=step"],
    "TRM H2 L2, curriculum": [*H2_L2, HALF_CURRICULUM],
    "TRM H1 L2, carry, 2 steps": [*H1_L2, TWO_STEPS, "arch.recursion=carry", "arch.halt_policy=fixed"],
}
BASE = [
    "dataset.source=sample",
    "dataset.subset_size=null",
    "dataset.seq_len=128",
    "global_batch_size=32",
    "arch.hidden_size=128",
    "arch.num_heads=4",
    "lr=2e-3",
    "lr_warmup_steps=50",
    "epochs=1000",
    "arch.grad_cycles=all",
    "arch.supervise=cycle",
]


class Conversations(Study):
    """Every variant with every seed, all with the same learning rate."""

    mark = "study"
    base = BASE
    variants = VARIANTS

    def __init__(self, variants: Sequence[str] | None, seeds: int, tflop: float, overrides: Sequence[str]) -> None:
        self.chosen = self.check_variants(variants)
        self.seeds, self.budget, self.settings = seeds, tflop * 1e12, tuple(overrides)

    def trials(self, rows: Sequence[Row]) -> list[Trial]:
        return [Trial(name, seed, self.budget, self.settings) for seed in range(self.seeds) for name in self.chosen]

    def kept(self, report: Report) -> dict[str, Any]:
        return next(iter(report.values()), {})

    def headline(self, row: Row) -> str:
        return f"exact accuracy {row['metrics']['exact_accuracy']:.3f}"

    def section(self, rows: Sequence[Row], page: Path) -> str:
        """All results of this compute and these overrides, trained now or before."""
        rows = [row for row in rows if (row["budget"], Trial.of(row).settings) == (self.budget, self.settings)]
        whole, picture = [row for row in rows if row["metrics"]], page.with_suffix(".png")
        draw(whole, picture)
        diverged = "".join(f"\n\n{Trial.of(row)} diverged." for row in rows if not row["metrics"])
        return f"{table(whole)}{diverged}\n\n![held-out accuracy and loss]({picture.name})"


def table(rows: Sequence[Row]) -> str:
    """One line a variant, best first: means over seeds, the spread of exact accuracy, and every depth."""
    lines = [
        "| variant | trunk parameters | steps | TFLOP | minutes | held-out loss | exact accuracy | exact by depth |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, group in grouped(rows):
        exact = [row["metrics"]["exact_accuracy"] for row in group]
        depths = sorted({int(k[6:].split("/")[0]) for row in group for k in row["metrics"] if k.startswith("depth_")})
        by_depth = ", ".join(f"{d}: {mean(group, f'depth_{d}/exact_accuracy'):.3f}" for d in depths)
        spread = f" ({min(exact):.3f} to {max(exact):.3f})" if len(exact) > 1 else ""
        lines.append(
            f"| {name} | {group[0]['parameters_trunk']:,} | {group[0]['steps']} "
            f"| {group[0]['steps'] * group[0]['flops_per_step'] / 1e12:.1f} "
            f"| {statistics.mean(row['seconds'] for row in group) / 60:.1f} "
            f"| {mean(group, 'token_loss'):.4f} | {statistics.mean(exact):.3f}{spread} | {by_depth} |"
        )
    return "\n".join(lines)


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["variant"], []).append(row)
    return sorted(groups.items(), key=lambda group: -mean(group[1], "exact_accuracy"))


def mean(group: Sequence[Row], metric: str) -> float:
    return statistics.mean(row["metrics"][metric] for row in group)


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Exact accuracy of every variant, a dot a seed."""
    from matplotlib.figure import Figure

    groups = grouped(rows)[::-1]
    figure = Figure(figsize=(8, 0.4 * len(groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, group) in enumerate(groups):
        values = [row["metrics"]["exact_accuracy"] for row in group]
        colour = "tab:orange" if name.startswith("TRM") else "tab:blue"
        axes.plot([statistics.mean(values)], [place], "|", color=colour, markersize=16, markeredgewidth=2)
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
    axes.set_yticks(range(len(groups)), [name for name, _ in groups])
    axes.set_xlabel("held-out exact accuracy after equal compute (a dot a seed)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(picture, dpi=120)
