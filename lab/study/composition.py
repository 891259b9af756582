"""The study of questions of known depth: every family with its own learning rate, for equal compute."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.study.composition_page import Blocks, section, validation
from lab.study.trials import Row, Trial
from lab.study.worlds import WorldStudy

SWEPT_WORLD = 0  # whose validation set chooses the settings; no reported number is of this world
SWEEP = [(f"lr={lr:g}",) for lr in (0.002, 0.004, 0.008, 0.016)]

BASE = [
    *("recipe=composition", "epochs=1000", "eval_interval=null", "dataset.seq_len=32", "global_batch_size=20"),
    *("arch.hidden_size=64", "arch.num_heads=4", "arch.expansion=4", "arch.norm=pre", "arch.rope_theta=100"),
    *("arch.tie_embeddings=true", "arch.supervise=last", "arch.grad_cycles=all", "arch.forward_dtype=float32"),
    *("optimizer=adamw", "lr_min_ratio=0.05", "lr_warmup_steps=60", "weight_decay=1.0", "grad_clip=1.0"),
]


def dense(layers: int) -> list[str]:
    return [f"arch.H_layers={layers}", "arch.halt_max_steps=1", "eval.halt_max_steps=1"]


def looped(layers: int, passes: int, evaluated: int = 12) -> list[str]:
    return [f"arch.H_layers={layers}", f"arch.halt_max_steps={passes}", f"eval.halt_max_steps={evaluated}"]


def trm(H_cycles: int, L_cycles: int) -> list[str]:
    """One layer; its H cycles are supervision steps, so that an evaluation may have more of them."""
    return [
        *("arch=trm_text", "arch.H_layers=0", "arch.L_layers=1", "arch.H_cycles=1", f"arch.L_cycles={L_cycles}"),
        *("arch.halt_policy=fixed", "arch.detach_between_steps=false"),
        *(f"arch.halt_max_steps={H_cycles}", "eval.halt_max_steps=6"),
    ]


LOOPED, DENSE, SMALL = "looped 1x4", "dense, 4 layers", "dense, 4 layers, hidden 32"
FAMILIES: dict[str, list[str]] = {
    DENSE: dense(4),
    LOOPED: looped(1, 4),
    "TRM H2 L1": trm(2, 1),
    "TRM H1 L3": trm(1, 3),
    SMALL: [*dense(4), "arch.hidden_size=32", "arch.num_heads=2"],
    "dense, 6 layers": dense(6),
    "dense, 2 layers": dense(2),
}
# One option of a family at a time, with the learning rate chosen for it.
OPTIONS: dict[str, list[str]] = {
    f"{LOOPED}, untied embeddings": [*looped(1, 4), "arch.tie_embeddings=false"],
    f"{LOOPED}, a loss at every pass": [*looped(1, 4), "arch.supervise=step"],
    f"{LOOPED}, gradient through the last half": [*looped(1, 4), "arch.grad_cycles=half"],
    f"{LOOPED}, the question at the start only": [*looped(1, 4), "arch.injection=start"],
    f"{LOOPED}, weight decay 0.1": [*looped(1, 4), "weight_decay=0.1"],
    f"{LOOPED}, embeddings do not decay": [*looped(1, 4), "weight_decay_embeddings=false"],
    f"{LOOPED}, two layers twice": looped(2, 2),
}
OPTION_WORLDS = 2


class Composition(WorldStudy):
    """A sweep in one world, then the best settings of every family in others, some of them for longer."""

    mark = "composition"
    base = BASE
    variants = FAMILIES | OPTIONS

    def __init__(
        self, variants: Sequence[str] | None, seeds: int, tflop: Sequence[float], overrides: Sequence[str]
    ) -> None:
        chosen = self.check_variants(variants)
        self.options = {name: of_family(name) for name in OPTIONS if name in chosen}
        self.families = [name for name in FAMILIES if name in {*chosen, *self.options.values()}]
        self.worlds = range(SWEPT_WORLD + 1, SWEPT_WORLD + 1 + seeds)
        self.short, self.long = (number * 1e12 for number in tflop)
        self.overrides = tuple(overrides)

    def trials(self, rows: Sequence[Row]) -> list[Trial]:
        blocks = self.blocks({Trial.of(row): row for row in rows})
        in_order = (blocks.sweep, blocks.short, blocks.long, blocks.options)
        return [trial for lines in in_order for trials in lines.values() for trial in trials]

    def blocks(self, results: Mapping[Trial, Row]) -> Blocks:
        """The runs of every table; those that wait for the sweep have no settings yet."""
        sweep = {name: self.sweep(name) for name in self.families}
        best = {name: best_of(trials, results) for name, trials in sweep.items()}
        short = {name: self.in_worlds(name, self.short, best[name]) for name in self.families}
        main = [name for name in (DENSE, LOOPED) if name in self.families]
        main += best_family([name for name in self.families if name.startswith("TRM")], sweep, results)
        long = {name: self.in_worlds(name, self.long, best[name]) for name in main}
        changed = {name: self.in_worlds(name, self.long, best[base]) for name, base in self.options.items()}
        options = {name: long[name] for name in self.options.values()} | changed
        options = {name: trials[:OPTION_WORLDS] for name, trials in options.items()}
        return Blocks(sweep, short, options, long)

    def sweep(self, name: str) -> list[Trial]:
        return [Trial(name, SWEPT_WORLD, self.short, (*point, *self.overrides)) for point in SWEEP]

    def in_worlds(self, name: str, budget: float, settings: tuple[str, ...] | None) -> list[Trial]:
        return [Trial(name, world, budget, settings) for world in self.worlds]

    def section(self, rows: Sequence[Row], page: Path) -> str:
        results = {Trial.of(row): row for row in rows}
        return section(self.blocks(results), results, page)


def of_family(option: str) -> str:
    """The family that an option changes, which its name begins with."""
    return max((name for name in FAMILIES if option.startswith(f"{name}, ")), key=len)


def best_of(trials: Sequence[Trial], results: Mapping[Trial, Row]) -> tuple[str, ...] | None:
    """The settings that are right most often on the validation set; None while a result is missing."""
    if any(trial not in results for trial in trials):
        return None
    return max(trials, key=lambda trial: validation(results[trial])).settings


def best_family(names: Sequence[str], sweep: Mapping[str, list[Trial]], results: Mapping[Trial, Row]) -> list[str]:
    """The one of these families that has the best run of all; the first one while a result is missing."""
    found = [trial for name in names for trial in sweep[name] if trial in results]
    if len(found) < sum(len(sweep[name]) for name in names):
        return [names[0]]
    return [max(found, key=lambda trial: validation(results[trial])).variant] if found else []
