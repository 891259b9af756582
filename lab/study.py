"""The study of text recursion: variants of one model trained for equal compute, and the page of the results."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.files.disk import disk_errors, write_file
from engine.build import text as build_text
from engine.build.jobs import InstructJob
from engine.build.text import TextSource
from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from engine.run import train
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.protocol import Task
from engine.tasks.text import sampled_depth
from engine.train.opening import parameter_counts
from models.config import DepthStage
from models.losses.text import TextLossHead

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
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


def study(
    *, variants: Sequence[str] | None, seeds: int, tflop: float, overrides: Sequence[str], results: Path, page: Path
) -> None:
    """Train the variants (all by default) that `results` does not hold yet, then write the page from all results."""
    unknown = sorted(set(variants or ()) - VARIANTS.keys())
    if unknown:
        raise ValueError(f"Unknown variants: {', '.join(unknown)}. Known are: {', '.join(VARIANTS)}.")
    flops = tflop * 1e12
    done = read_results(results)
    for seed in range(seeds):
        for name in variants or VARIANTS:
            if (name, seed) in {(row["variant"], row["seed"]) for row in done}:
                continue
            print(f"study: {name}, seed {seed}", file=sys.stderr)
            words = [*BASE, *VARIANTS[name], *overrides, f"seed={seed}"]
            config = check(InstructConfig, composed("cfg_pretrain_instruct", words))
            row = {"variant": name, "seed": seed, "budget": flops} | train_variant(
                config, flops, results.parent / "runs"
            )
            done.append(row)
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    write_page(done, page)


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class StudyJob(InstructJob):
    """Training on a source that is open already and says how many steps are taken."""

    def __init__(self, config: InstructConfig, source: TextSource) -> None:
        super().__init__(config, "text")
        self.source = source

    def open_source(self, runtime: Runtime) -> TextSource:
        return self.source

    def build_task(self, head: TextLossHead, source: TextSource, runtime: Runtime) -> Task:
        return build_text.text_task_of(self.config, head, runtime, source.total_steps, source.total_rows, None)


def train_variant(config: InstructConfig, flops: float, folder: Path) -> dict[str, Any]:
    """Train for so many floating point operations and evaluate at every depth."""
    runtime = start_runtime(config.device, config.compile, config.seed)
    source = build_text.build_text(config, runtime)
    head = build_text.build_text_head(config, source.metadata, runtime)
    per_step = mean_flops_of_step(config, source, runtime)
    steps = max(1, round(flops / per_step))
    config = config.model_copy(update={"max_steps": steps, "checkpoint_path": str(folder / f"{time.time_ns()}")})
    total_rows = source.total_rows
    if head.model.config.recursion == "carry":
        total_rows = round(steps * config.global_batch_size / config.arch.options["halt_max_steps"])
    started = time.monotonic()
    report = train(StudyJob(config, replace(source, total_steps=steps, total_rows=total_rows)))
    assert report is not None
    (metrics,) = report.values()
    seconds = time.monotonic() - started
    facts = {"steps": steps, "flops_per_step": per_step, "seconds": round(seconds, 1), "steps_per_s": steps / seconds}
    return parameter_counts(head) | facts | {"metrics": metrics}


def mean_flops_of_step(config: InstructConfig, source: build_text.TextSource, runtime: Runtime) -> float:
    """Operations of an average optimizer step: counted at every depth that the run will use, weighted by its share."""
    head = build_text.build_text_head(config, source.metadata, runtime)
    options = head.model.config
    task = build_text.text_task_of(config, head, runtime, 1, 1, None)
    item, _ = next(task.feed(source.data.train_items(1, 0)))
    depths = [sampled_depth(options, options.halt_max_steps, seed) for seed in range(200)]
    mean_depth = 1.0 if options.recursion == "carry" else sum(depths) / len(depths)
    stages: list[DepthStage] = options.depth_curriculum
    total, begin = 0.0, 0.0
    options.halt_policy, options.depth_curriculum, options.halt_max_steps = "fixed", [], 1
    cycles = (options.H_cycles, options.L_cycles)
    for end, H_cycles, L_cycles in [*((s.until, s.H_cycles, s.L_cycles) for s in stages), (1.0, *cycles)]:
        options.H_cycles, options.L_cycles = H_cycles or cycles[0], L_cycles or cycles[1]
        task.start_step(1)
        total += (end - begin) * task.flops(item) * mean_depth
        begin = end
    return total


def write_page(rows: list[dict[str, Any]], page: Path) -> None:
    """The table between the marks of the page, and the picture beside it."""
    text = page.read_text() if page.exists() else f"# Recursion on text\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    picture = page.with_suffix(".png")
    with disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        draw(rows, picture)
        shown = f"![held-out accuracy and loss]({picture.name})"
        write_file(page, f"{before}{BEGIN}\n{table(rows)}\n\n{shown}\n{END}{after}")
    print(page)


def table(rows: list[dict[str, Any]]) -> str:
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


def grouped(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["variant"], []).append(row)
    return sorted(groups.items(), key=lambda group: -mean(group[1], "exact_accuracy"))


def mean(group: list[dict[str, Any]], metric: str) -> float:
    return statistics.mean(row["metrics"][metric] for row in group)


def draw(rows: list[dict[str, Any]], picture: Path) -> None:
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
