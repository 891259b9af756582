"""README.md in the directory of a run, written at its end: numbers beside their baselines, commands, commit, pictures."""

import json
import math
from pathlib import Path
from typing import Any

from dataset.files.disk import write_file
from engine.card.about import arch_of, commands, data_of, kind_of
from engine.card.baselines import Scores, baselines
from engine.checkpoints.find import META_FILE, complete_steps
from engine.train.job import Job
from engine.train.loop import Run
from engine.train.tracking.metrics_file import METRICS_FILE, read_lines

CARD_FILE = "README.md"
MARK = "<!-- Written when training ended, and again if it is resumed. Without this line it is left as it is. -->"
COMMANDS = "## Commands"
# What of an evaluation is worth a row, in this order; the rest stands in metrics.jsonl.
METRICS = (
    "token_loss",
    "lm_loss",
    "loss",
    "perplexity",
    "bits_per_byte",
    "token_accuracy",
    "accuracy",
    "exact_accuracy",
    "valid_boards",
    "valid_shortest",
    "kl",
)
PICTURES = (".png", ".svg")


def write_card(job: Job, run: Run) -> None:
    """Write the card of a run that is over, unless somebody made it theirs."""
    file = run.run_dir / CARD_FILE
    if not file.exists() or MARK in file.read_text(encoding="utf-8", errors="replace"):
        write_file(file, card_of(job, run))


def card_of(job: Job, run: Run) -> str:
    """The text of the card."""
    config, folder = job.settings.config, run.run_dir
    blind = {} if run.data.eval_items is None else baselines(run.data.eval_items())
    resume = job.resume_command(folder)
    typed = resume.removesuffix(" resume=true").partition(" --resume-from ")[0]
    parts = [f"# {folder.name}", MARK, about(config, folder), f"```bash\n{typed}\n```", "## Held-out numbers"]
    parts.append(numbers(folder, run.state.best_step, blind) or "Nothing was held out: how good this is, is not known.")
    lines = "\n".join(commands(config, folder, resume))
    parts += [COMMANDS, f"```bash\n{lines}\n```"]
    parts += [f"![{path.stem}]({path.name})" for path in sorted(folder.iterdir()) if path.suffix in PICTURES]
    return "\n\n".join(parts) + "\n"


def about(config: dict[str, Any], folder: Path) -> str:
    """What was trained on what, for how long, and by which code."""
    steps = complete_steps(folder)
    meta = json.loads((steps[max(steps)] / META_FILE).read_text(encoding="utf-8")) if steps else {}
    commit = f"commit `{meta['commit'][:12]}`" if meta.get("commit") else "a commit that is not known"
    changed = ", with files that differ from it" if meta.get("commit_is_dirty") else ""
    size = f" of {meta['parameters']:,} parameters" if "parameters" in meta else ""
    return (
        f"`{arch_of(config)}`{size} ({kind_of(config)}), trained on {data_of(config)} for {max(steps, default=0)} steps with "
        f"seed {config.get('seed')}, by {commit}{changed}:"
    )


def numbers(folder: Path, best_step: int | None, blind: Scores) -> str:
    """A table of the best and the last evaluation beside what a guess would score; empty if there is none."""
    found = {step: values for step, values in evaluations(folder).items() if step == best_step}
    found |= dict(list(evaluations(folder).items())[-1:])
    base = first_values(folder)
    names = {key for values in found.values() for key in values}
    rows = []
    for key in sorted(names, key=lambda key: (key.split("/")[0], METRICS.index(key.split("/")[1]))):
        name, metric = key.split("/")
        guess = blind.get(name, {}).get(metric)
        beside = "" if guess is None else f"{guess[1]:.4g} ({guess[0]})"
        if key in base:
            beside = f"{base[key]:.4g} (before the first step)"
        rows.append([name, metric, *(shown(values.get(key)) for values in found.values()), beside or "-"])
    if not rows:
        return ""
    titles = [f"step {step}{', the best' if step == best_step else ''}" for step in found]
    header = ["set", "metric", *titles, "baseline"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def evaluations(folder: Path) -> dict[int, dict[str, Any]]:
    """What is worth a row, of every evaluation of the run, by step."""
    found: dict[int, dict[str, Any]] = {}
    for _, line in read_lines(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else ():
        kept = {key: value for key, value in line.items() if is_worth_a_row(key)}
        if kept:
            found[line["step"]] = found.pop(line["step"], {}) | kept
    return found


def is_worth_a_row(key: str) -> bool:
    name, _, metric = key.partition("/")
    return metric in METRICS and name not in ("train", "base")


def first_values(folder: Path) -> dict[str, float]:
    """What was measured before the first step, where a run does that."""
    found = {}
    for _, line in read_lines(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else ():
        for key, value in line.items():
            if key.startswith("base/") and isinstance(value, float) and math.isfinite(value):
                found[key.removeprefix("base/")] = value
    return found
