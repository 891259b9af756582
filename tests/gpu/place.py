"""What a case of the pretended device is, where it runs, and runs of the engine that fit into a fraction of a second."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from dataset.common import LoaderItem, text_metadata
from engine.build.compiling import compile_networks
from engine.build.puzzles import build_model, build_optimizers, build_task
from engine.build.text import build_text_head, text_task_of
from engine.checkpoints.load import load_checkpoint, load_weights
from engine.checkpoints.save import CheckpointStore
from engine.config.check import check
from engine.config.compose import composed
from engine.config.schema import PretrainConfig, RunConfig
from engine.config.text import InstructConfig
from engine.runtime.devices import Runtime
from engine.runtime.signals import StopSignal
from engine.tasks.protocol import Task
from engine.train.loop import Run, RunData, fit, train_step
from engine.train.optimizers import OptimizerSet
from engine.train.plan import Plan
from engine.train.resume import restore
from models.ema import WeightAverage
from tests.engine.text_samples import LENGTH, VOCAB, make_reader, make_store
from tests.models import small
from tests.tiny import Recorder, is_timing

Config = TypeVar("Config", bound=RunConfig)
STEPS = 2
PRECISE, DECODED = 1e-4, 1e-6  # how far numbers of training and of decoding may be from those of the CPU
SIXTEEN_BITS = 1e-2  # in which Muon computes on CUDA
TINY_GRADIENTS = 1e-3  # AdamW divides by their size, so that rounding of the smallest ones moves a weight


@dataclass(frozen=True)
class Place:
    """A device to run a case on, and a directory of the case's own."""

    runtime: Runtime
    folder: Path
    measured: Callable[[], AbstractContextManager[Any]] = nullcontext  # within, waits and launches are counted
    facts: dict[str, int] = field(default_factory=dict)  # how many times what is measured was done

    @property
    def device(self) -> torch.device:
        return self.runtime.device


@dataclass(frozen=True)
class Case:
    """Something to run on either device; what it returns must be the same on both."""

    run: Callable[[Place], Any]
    tolerance: float = PRECISE


CASES: dict[str, Case] = {}


def case(name: str, tolerance: float = PRECISE) -> Callable[[Callable[[Place], Any]], Callable[[Place], Any]]:
    """Adds the decorated function to the cases."""

    def add(run: Callable[[Place], Any]) -> Callable[[Place], Any]:
        assert name not in CASES, name
        CASES[name] = Case(run, tolerance)
        return run

    return add


@cache
def _composed(config_name: str, arch: str) -> dict[str, Any]:
    return composed(config_name, [f"arch={arch}"])


def config_of(config_class: type[Config], arch: str, options: dict[str, Any], run: dict[str, Any]) -> Config:
    """What `arch=...` and some of its options make of the main program's config, at the size of a test."""
    names = {PretrainConfig: "cfg_pretrain", InstructConfig: "cfg_pretrain_instruct"}
    data = dict(_composed(names[config_class], arch))
    small_arch = {"hidden_size": 32, "num_heads": 2, "expansion": 1, "forward_dtype": "float32"}
    data["arch"] = data["arch"] | small_arch | options
    data |= {"lr": 1e-2, "lr_warmup_steps": 1, "log_interval": 1, "compile": False} | run
    return check(config_class, data)


def opened(at: Place, task: Task, optimizers: OptimizerSet, *, average: float | None = 0.9, **plan: Any) -> Run:
    """A run of this task, as the engine opens it, but for its data."""
    return Run(
        task=task,
        data=RunData(train_items=lambda *_: (), eval_items=None),
        plan=Plan(total_steps=9, expected_steps=9, iterations=9, **({"log_interval": 1, "grad_clip": 1.0} | plan)),
        checkpoint_yaml="",
        optimizers=optimizers,
        runtime=at.runtime,
        tracker=Recorder(),  # type: ignore[arg-type]
        store=CheckpointStore(at.folder),
        run_dir=at.folder,
        average=None if average is None else WeightAverage(task.module, average),
    )


def train(at: Place, run: Run, items: Iterable[LoaderItem], warm: int = 0) -> dict[str, Any]:
    """One optimizer step for each item (with persistent text: for what its slots make of them); what came of it. The
    first `warm` steps are not counted."""
    steps = run.task.feed(from_loader(at, items))
    for number in count():
        with at.measured() if number >= warm else nullcontext():
            item = next(iter(steps), None)
            if item is not None:
                train_step(run, item[0])
        if item is None:
            return result_of(run)
        at.facts["times"] = at.facts.get("times", 0) + (number >= warm)
    raise AssertionError("unreachable")


def from_loader(at: Place, items: Iterable[LoaderItem]) -> Iterator[LoaderItem]:
    """Items as the loader gives them: in pinned memory where the device is CUDA's."""
    for name, batch, rows in items:
        yield name, {k: v.pin_memory() for k, v in batch.items()} if at.device.type == "cuda" else batch, rows


def result_of(run: Run) -> dict[str, Any]:
    lines = run.tracker.lines  # type: ignore[attr-defined]
    return {
        "logged": [{key: value for key, value in line.items() if not is_timing(key)} for line in lines],
        "weights": run.task.module.state_dict(),
        "average": {} if run.average is None else run.average.state_dict(),
        "lasting": run.task.state_dict(),
    }


def fitted(at: Place, run: Run, items: list[LoaderItem], steps: int, evaluated: list[LoaderItem] | None = None) -> Run:
    """The run after `fit` has taken it to this step, which is saved and, with data for it, evaluated."""
    run.data = RunData(
        train_items=lambda _, done: from_loader(at, items[done:]),
        eval_items=None if evaluated is None else lambda: from_loader(at, evaluated),
        eval_sets=["test"],
    )
    run.plan = replace(run.plan, total_steps=steps, expected_steps=steps)
    fit(run, StopSignal())
    assert run.store is not None
    run.store.wait()
    return run


def resumed(at: Place, make: Callable[[Place], Run], items: list[LoaderItem], evaluated: list[LoaderItem]) -> Any:
    """What an uninterrupted run ends with, and that one which was saved on the way ends alike."""
    places = [replace(at, folder=at.folder / name) for name in ("whole", "parts")]
    whole = fitted(at, make(places[0]), items, 2 * STEPS, evaluated)
    fitted(at, make(places[1]), items, STEPS, evaluated)
    checkpoint = load_checkpoint(places[1].folder / "latest", with_trainer=True)
    last = make(places[1])
    load_weights(last.task.module, checkpoint.weights, source="the checkpoint")
    assert checkpoint.trainer is not None
    restore(last, checkpoint.trainer, checkpoint.ema)
    fitted(at, last, items, 2 * STEPS, evaluated)
    found, expected = (result_of(run) for run in (last, whole))
    for name in ("weights", "average", "lasting"):
        for one, other in zip(tree_leaves(found[name]), tree_leaves(expected[name]), strict=True):
            assert not isinstance(one, torch.Tensor) or torch.equal(one, other), f"{name} differ after a resume"
    return expected


def puzzle_run(
    at: Place, arch: str = "trm", *, prefix: bool = False, run: dict[str, Any] | None = None, **options: Any
):
    """A run on puzzles of the shape of `tests.models.small`; heads and puzzle table are not at their zeros."""
    facts = options.pop("metadata", None) or text_metadata(small.LENGTH, small.VOCAB, 0).model_copy(
        update={"num_puzzle_identifiers": 5}
    )
    given = {
        "L_layers": 1,
        "H_cycles": 2,
        "L_cycles": 2,
        "halt_max_steps": 3,
        "puzzle_emb_ndim": 0,
        "puzzle_emb_len": 0,
    }
    given |= {"halt_exploration_prob": 0.5} | (small.PREFIX if prefix else {}) | options
    given |= {"H_layers": 1} if arch in ("hrm", "transformers_baseline") else {}
    settings = {"data_paths": ["unused"], "global_batch_size": 4, "evaluators": []} | (run or {})
    config = config_of(PretrainConfig, arch, given, settings)
    torch.manual_seed(1)
    head = build_model(config.arch, facts, 4, at.runtime)
    torch.nn.init.normal_(head.model.inner.q_head.weight, std=0.02)
    torch.nn.init.zeros_(head.model.inner.q_head.bias)
    if head.model.puzzle_emb is not None:
        torch.nn.init.normal_(head.model.puzzle_emb.weights)
    task = build_task(config, head, facts, at.runtime, total_steps=9)
    if at.runtime.use_compile:
        compile_networks(head, at.runtime)
    return opened(at, task, build_optimizers(config, head, at.runtime, 9), log_interval=config.log_interval)


def puzzle_items(number: int = STEPS, rows: int = 4) -> list[LoaderItem]:
    return [("train", small.make_batch(seed, rows=rows), rows) for seed in range(number)]


def text_run(
    at: Place, arch: str = "trm_text", *, run: dict[str, Any] | None = None, vocab_size: int = VOCAB, **options: Any
):
    """A run on the conversations of `tests.engine.text_samples`."""
    depth = {"L_layers": 1, "H_cycles": 2, "L_cycles": 1, "halt_max_steps": 3}
    by_arch = {"dense_text": {}, "prefix_text": {}, "looped_text": {}, "retnet_tiny": {"expansion": 1}}
    given = by_arch.get(arch, depth) | options
    settings = {"global_batch_size": 4, "dataset": {"source": "sample", "seq_len": LENGTH}} | (run or {})
    config = config_of(InstructConfig, arch, given, settings)
    torch.manual_seed(1)
    head = build_text_head(config, text_metadata(config.row_length, vocab_size, 0), at.runtime)
    torch.nn.init.normal_(head.model.inner.q_head.weight)
    torch.nn.init.zeros_(head.model.inner.q_head.bias)
    piece_bytes = torch.arange(vocab_size) % 5
    task = text_task_of(config, head, at.runtime, total_steps=9, total_rows=24, piece_bytes=piece_bytes)
    if at.runtime.use_compile:
        compile_networks(head, at.runtime)
    return opened(at, task, build_optimizers(config, head, at.runtime, 9), log_interval=config.log_interval)


def text_items(documents: int = 12, rows: int = 4, packing: bool = True) -> list[LoaderItem]:
    return list(make_reader(make_store(documents), rows, packing=packing))
