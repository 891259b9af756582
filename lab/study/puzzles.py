"""The study of 6x6 Sudoku: TRM, a looped network and plain ones of equal parameters and of equal compute."""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config.compose import composed
from lab.drawing import FAINT, INK
from lab.study.composition import best_of
from lab.study.composition_page import COLOURS, Lines, mean_by_depth, rate_of, rows_of, spread, sweep_table, time_of
from lab.study.trials import Row, Trial, options_word
from lab.study.worlds import PassStudy

SWEPT_SEED = 0  # of the runs that choose the learning rates; no reported number is of them
SWEPT_SHARE = 0.4  # of the compute of a reported run, which is what each of them gets
SWEEP = [(f"lr={lr:g}",) for lr in (0.002, 0.004, 0.008)]
TEST_SET = "all"
MADE = ("--generate", "6x6", "--count", "20000", "--test-count", "500", "--seed", "7")

BASE = [
    *("recipe=sudoku_6x6", "arch.expansion=3", "arch.feed_forward=gated_norm", "global_batch_size=32"),
    *("disguises=true", "lr_warmup_steps=20", "lr_min_ratio=0.05", "ema_rate=0.95"),
    *("eval_interval=null", "eval.validation_split=0.0125", "eval.by_step=true"),
]
TRM, LOOPED = "TRM", "looped, one latent"


def plain(layers: int) -> list[str]:
    """A network that is applied once to a puzzle."""
    depth = [f"arch.H_layers={layers}", "arch.L_layers=0", "arch.L_cycles=1", "arch.H_cycles=1"]
    return ["arch=transformers_baseline", *depth, "arch.halt_max_steps=1", "eval.halt_max_steps=1"]


class Puzzles(PassStudy):
    """A sweep with one seed and a share of the compute, then every network at its best learning rate with other seeds."""

    mark = "puzzles"
    title = "Recursion on puzzles"
    config_name = "cfg_pretrain"

    def __init__(
        self, variants: Sequence[str] | None, seeds: int, tflop: float, overrides: Sequence[str], data: Path
    ) -> None:
        self.data = data
        self.base = [*BASE, *overrides, f"data_paths=['{data}']"]
        arch = composed(self.config_name, self.base)["arch"]
        deeper = [f"eval.halt_max_steps={2 * arch['halt_max_steps']}"]
        layers = arch["L_layers"]
        applied = layers * arch["H_cycles"] * (arch["L_cycles"] + 1)  # in one supervision step
        self.variants = {
            TRM: deeper,
            LOOPED: ["arch=trm_singlez", *deeper],
            f"plain, {applied} layers": plain(applied),
            f"plain, {layers} layers": plain(layers),
        }
        self.chosen = self.check_variants(variants)
        options = [composed(self.config_name, [*self.base, *words]) for words in self.variants.values()]
        self.same_options = options_word(options)
        self.seeds, self.budget = range(SWEPT_SEED + 1, SWEPT_SEED + 1 + seeds), tflop * 1e12

    def prepare(self) -> None:
        if self.data.exists():
            return
        command = [sys.executable, "-m", "dataset.build_sudoku_dataset", *MADE, "--output-dir", str(self.data)]
        if code := subprocess.run(command, stdout=sys.stderr).returncode:
            raise ValueError(f"The puzzles could not be made: {' '.join(command)} ended with exit code {code}.")

    def trials(self, rows: Sequence[Row]) -> list[Trial]:
        sweep, lines = self.blocks({Trial.of(row): row for row in rows})
        return [trial for block in (sweep, lines) for trials in block.values() for trial in trials]

    def blocks(self, results: Mapping[Trial, Row]) -> tuple[Lines, Lines]:
        """The runs that choose the learning rates, and those of the table; the latter have no settings before that."""
        budget, word = SWEPT_SHARE * self.budget, self.same_options
        sweep = {name: [Trial(name, SWEPT_SEED, budget, (*point, word)) for point in SWEEP] for name in self.chosen}
        best = {name: best_of(trials, results) for name, trials in sweep.items()}
        return sweep, {
            name: [Trial(name, seed, self.budget, best[name]) for seed in self.seeds] for name in self.chosen
        }

    def section(self, rows: Sequence[Row], page: Path) -> str:
        results = {Trial.of(row): row for row in rows}
        sweep, lines = self.blocks(results)
        picture = page.with_suffix(".png")
        draw(lines, results, picture)
        return "\n\n".join(
            (
                f"### Every network at its own best learning rate, {self.budget / 1e12:g} TFLOP a run",
                table(lines, results),
                f"![exact accuracy by the compute of an answer]({picture.name})",
                f"### How the learning rates were chosen, {SWEPT_SHARE * self.budget / 1e12:g} TFLOP a run",
                sweep_table(sweep, results),
                time_of((sweep, lines), results),
            )
        )


def table(lines: Lines, results: Mapping[Trial, Row]) -> str:
    """A line a network: its size, what its training took, and how often it is right after some of its supervision steps."""
    by_step = {name: mean_by_depth(rows_of(trials, results), TEST_SET) for name, trials in lines.items()}
    most = max(len(found) for found in by_step.values())
    shown = [step for step in (1, 2, 4, 8, 12, 16, 24, 32) if step <= most]
    head = ["network", "trunk parameters", "lr", "training steps", "seconds", *(f"step {step}" for step in shown)]
    written = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, trials in lines.items():
        rows = rows_of(trials, results)
        seconds = statistics.mean(row["cpu_seconds"] for row in rows)
        facts = [f"{rows[0]['parameters_trunk']:,}", rate_of(trials[0]), str(rows[0]["steps"]), f"{seconds:.0f}"]
        cells = [spread(accuracies(rows, step)) if step <= len(by_step[name]) else "-" for step in shown]
        written.append(f"| {' | '.join([name, *facts, *cells])} |")
    return "\n".join(written)


def accuracies(rows: Sequence[Row], step: int) -> list[float]:
    """Of every run on the held-out puzzles after so many supervision steps; 0 of one that diverged."""
    return [row["metrics"][TEST_SET][f"depth_{step}/exact_accuracy"] if row["metrics"] else 0.0 for row in rows]


def draw(lines: Lines, results: Mapping[Trial, Row], picture: Path) -> None:
    """Exact accuracy by the compute of an answer: a line for what has supervision steps, a point for what has none."""
    from matplotlib.figure import Figure

    unit_name, unit = next((name, results[trials[0]]["flops_per_step"]) for name, trials in lines.items())
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, trials), marker in zip(lines.items(), "osD^", strict=False):
        rows = rows_of(trials, results)
        steps = range(1, 1 + len(mean_by_depth(rows, TEST_SET)))
        compute = [step * rows[0]["flops_per_step"] / unit for step in steps]
        found = [accuracies(rows, step) for step in steps]
        means, low, high = ([of(values) for values in found] for of in (statistics.mean, min, max))
        colour = COLOURS["dense" if name.startswith("plain") else name.split()[0].rstrip(",")]
        axes.plot(compute, means, marker=marker, ms=5, color=colour, label=name)
        axes.fill_between(compute, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.vlines(compute, low, high, color=colour, alpha=0.4)
    axes.axvline(rows_of(next(iter(lines.values())), results)[0]["depth"], color=FAINT, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"compute of an answer, in supervision steps of {unit_name}; dotted: as many as were trained")
    axes.set_ylabel("held-out puzzles solved")
    axes.set_title("6x6 Sudoku after the same training compute", loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, alpha=0.5)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=120)
