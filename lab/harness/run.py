"""Evaluates a checkpoint on tasks of lm-evaluation-harness, at one depth or several, and sums up what came out."""

import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dataset.files.disk import write_file
from engine.build.text_checkpoint import load_model
from lab.harness.model import checkpoint_lm
from lab.harness.options import HarnessOptions

Report = dict[str, dict[str, Any]]  # depth -> what lm-eval reports


def require_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ValueError("The package lm-eval is missing. Install it: pip install lm-eval") from error


def evaluate(options: HarnessOptions) -> Report:
    """The results of every depth, which are written to `output` where that is named."""
    require_lm_eval()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    loaded = load_model(options.opening)
    report: Report = {}
    with redirect_stdout(sys.stderr):  # what is printed on the way is no result
        names, manager = found_tasks(options)
        for depth in options.depth or (loaded.model.config.halt_max_steps,):
            print(f"{', '.join(names)} at depth {depth}", file=sys.stderr)
            report[str(depth)] = simple_evaluate(
                checkpoint_lm(loaded, depth, options.batch_size),
                tasks=names,
                task_manager=manager,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.apply_chat_template,
                batch_size=options.batch_size,
                log_samples=False,
            )
    if options.output:
        whole = {"checkpoint": str(loaded.path), "by_depth": report}
        write_file(Path(options.output), json.dumps(whole, indent=1, default=handle_non_serializable) + "\n")
    return report


def found_tasks(options: HarnessOptions) -> tuple[list[str], Any]:
    """The names of the tasks that were asked for, and where lm-eval finds them; its own, of which there are many, are
    looked through only if some are not in the directory that was named."""
    from lm_eval.tasks import TaskManager

    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise ValueError(f"--include-path {options.include_path} is not a directory.")
    wanted = [name.strip() for name in options.tasks.split(",") if name.strip()]
    manager = TaskManager(include_path=options.include_path, include_defaults=False)
    if not wanted or not all(manager.match_tasks([name]) for name in wanted):
        manager = TaskManager(include_path=options.include_path)
    for name in wanted:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks)
            raise ValueError(
                f"lm-eval knows no task {name!r}{f', did you mean {near[0]!r}?' if near else '.'} A directory with tasks of "
                "your own is named by --include-path."
            )
    names = manager.match_tasks(wanted)
    if not names:
        raise ValueError(
            "--tasks is empty. Name tasks of lm-eval with commas between them, such as arc_easy,hellaswag."
        )
    return names, manager


def table(report: Report) -> str:
    """The scores in Markdown: a row for each metric of a task, a column for each depth, with standard errors."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for depth, found in report.items():
        for row, cell in scores(found):
            rows.setdefault(row, {})[depth] = cell
    lines = [["task", "shots", "metric", *(f"depth {depth}" for depth in report)]]
    lines += [[*row, *(cells.get(depth, "") for depth in report)] for row, cells in rows.items()]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scores(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Task, shots and metric, with its value and standard error; a filter other than lm-eval's first is named."""
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, has_filter, kind = key.partition(",")
            if not has_filter or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            name = metric if kind == "none" else f"{metric} ({kind})"
            shots = str(found["n-shot"].get(task, ""))
            yield (
                (metrics.get("alias", task), shots, name),
                number(value) + (f" ± {number(error)}" if isinstance(error, float) else ""),
            )


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
