"""The evaluate loop of every task: loader items -> sums -> {set: {metric: value}}."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dataset.common import Batch, LoaderItem
from dataset.files.disk import write_file
from engine.runtime.devices import Runtime
from engine.runtime.signals import CutShortError, StopSignal
from engine.tasks.protocol import Sums, Task, add_sums, fetched

Report = dict[str, dict[str, float]]


class Evaluator(Protocol):
    """Judges predictions beyond sums, as ARC's voting does."""

    required_outputs: set[str]

    def begin_eval(self) -> None: ...

    def update_batch(self, batch: Batch, preds: dict[str, Tensor]) -> None: ...

    def result(self, save_path: str | None, rank: int, world_size: int, group: Any) -> dict[str, float] | None: ...


@runtime_checkable
class StatefulEvaluator(Evaluator, Protocol):
    """An evaluator whose later results depend on former evaluations; checkpoints keep the main rank's state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def stateful(evaluators: Sequence[Evaluator]) -> dict[str, StatefulEvaluator]:
    """Those with a state, by number and class."""
    named = {f"{number} {type(evaluator).__name__}": evaluator for number, evaluator in enumerate(evaluators)}
    return {name: evaluator for name, evaluator in named.items() if isinstance(evaluator, StatefulEvaluator)}


def evaluate(
    task: Task,
    items: Iterable[LoaderItem],
    set_names: Sequence[str],
    runtime: Runtime,
    *,
    num_batches: int | None = None,
    evaluators: Sequence[Evaluator] = (),
    save_outputs: Sequence[str] = (),
    output_dir: Path | None = None,
    label: str = "",
    stop: StopSignal | None = None,
) -> Report:
    """Score all items; the averaged weights, if any, have been swapped in by the caller.

    An evaluator that fails is reported and left out; the run continues. Raises CutShortError within a batch of a signal
    that asks to stop.
    """
    from tqdm import tqdm

    totals: dict[str, Sums] = {}
    saved: dict[str, list[Tensor]] = {name: [] for name in save_outputs}
    working = list(evaluators)
    for evaluator in evaluators:
        evaluator.begin_eval()
    is_cut = False
    wanted = set(save_outputs).union(*(evaluator.required_outputs for evaluator in evaluators))

    with torch.no_grad():
        for set_name, batch, _ in tqdm(
            items, desc="evaluate", total=num_batches, file=sys.stderr, leave=False, disable=not runtime.is_main
        ):
            if is_cut := stop is not None and stop.requested:
                break
            sums, outputs = task.eval_batch(batch, wanted)
            add_sums(totals.setdefault(set_name, {}), sums)
            outputs = {name: value.cpu() for name, value in outputs.items()}
            for name in save_outputs:
                saved[name].append(outputs[name])
            working = [e for e in working if _succeeds(e, lambda: e.update_batch(batch, outputs))]  # noqa: B023

    if runtime.any_rank(is_cut):
        raise CutShortError("the evaluation")

    # In one order that every rank shares, because fetching adds the sums of all ranks.
    report = {name: task.eval_report(fetched(totals[name], runtime)) for name in set_names if name in totals}
    if saved and output_dir is not None:
        from safetensors.torch import save

        tensors = {name: torch.cat(parts) for name, parts in saved.items()}
        write_file(output_dir / f"{label}_all_preds.{runtime.rank}.safetensors", save(tensors))
    for number, evaluator in enumerate(evaluators):
        kind = type(evaluator).__name__
        name = kind if kind not in report else f"{kind}#{number + 1}"  # one a data set, where there are several
        if runtime.any_rank(evaluator not in working):  # all ranks must agree: a result gathers over them
            continue
        folder = None if output_dir is None else str(output_dir / f"evaluator_{name}_{label}")
        results: list[dict[str, float] | None] = []
        rank, ranks = runtime.rank, runtime.world_size
        if _succeeds(evaluator, lambda: results.append(evaluator.result(folder, rank, ranks, None))) and results[0]:  # noqa: B023
            report[name] = results[0]
    return report


def _succeeds(evaluator: Evaluator, action: Callable[[], None]) -> bool:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - an evaluator's fault must not cost a run of days
        print(
            f"evaluator {type(evaluator).__name__} failed and is left out: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return False
    return True


def flat(report: Report) -> dict[str, float]:
    """`set/metric` names for logging."""
    return {f"{set_name}/{metric}": value for set_name, metrics in report.items() for metric, value in metrics.items()}
