"""What a run that Hydra configures would do: its plan, sizes and memory; nothing is written."""

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dataset.common import LoaderItem
from dataset.files.download import offline
from engine.build.jobs import HydraJob
from engine.checkpoints.run_directory import check_unused
from engine.config.text import InstructConfig
from engine.runtime.devices import start_runtime
from engine.train.job import RunStart
from engine.train.loop import RunParts
from engine.train.tracking.tracker import Notices


def dry_run(job: HydraJob[Any]) -> dict[str, Any]:
    """The data and the model are opened, and one row is trained on to see what it takes.

    A corpus or tokenizer that would have to be downloaded is an error; the tokenizer that the built-in one trains is not
    kept.
    """
    config = job.config
    with ExitStack() as stack:
        stack.enter_context(offline("--dry-run downloads nothing"))
        if isinstance(config, InstructConfig) and config.dataset.is_built_in:
            place = stack.enter_context(TemporaryDirectory())
            job.config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"data_dir": place})})
        runtime = start_runtime(config.device, False, config.seed)
        stack.callback(runtime.close)
        say = Notices(runtime.is_main)
        directory = job.directory(runtime, say)
        check_unused(directory, bool(config.resume))
        parts = job.compose(RunStart(runtime, directory, None, say, stack))
        source, config = job.opened, job.config
        assert source is not None, "compose has opened it"
        rows = config.global_batch_size
        num_evaluations, num_saves = due(parts, source.steps_per_epoch * config.epochs_per_iteration)
        passes = parts.task.micro_batches
        return {
            "run_directory": str(directory.path),
            "device": str(runtime.device),
            "ranks": runtime.world_size,
            "steps": parts.plan.expected_steps,
            "epochs": round(parts.plan.expected_steps / source.steps_per_epoch, 3),
            "evaluations": num_evaluations,
            "saves": num_saves,
            **parts.meta,
            "train_rows": source.train_rows,
            "train_tokens": source.train_tokens,
            "held_out_batches": parts.data.num_eval_batches or 0,
            "global_batch_size": rows,
            "passes_per_step": passes,
            "tokens_per_pass": rows // runtime.world_size // passes * source.metadata.seq_len,
            "passes_from": parts.task.passes_from,
            "memory_bytes": memory(parts, rows // runtime.world_size // passes, has_average=config.ema),
        }


def due(parts: RunParts, steps_per_iteration: float) -> tuple[int, int]:
    """How many evaluations and saves the plan has, the last ones of the run among them."""
    plan, last = parts.plan, parts.plan.expected_steps
    ends = [min(round(number * steps_per_iteration), last) for number in range(1, plan.iterations + 1)]
    evaluated = {*ends[plan.first_eval_iteration - 1 :], last} if parts.data.eval_items is not None else set()
    saved = {*(ends if plan.save_every_eval else []), last}
    if plan.save_every_steps is not None:
        saved |= set(range(plan.save_every_steps, last, plan.save_every_steps))
    return len(evaluated), len(saved)


def memory(parts: RunParts, rows_of_pass: int, has_average: bool) -> dict[str, int]:
    """Bytes of what one rank holds while it trains; the activations are those of one row, times the rows."""
    module = parts.task.module
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    weights = sum(value.nbytes for value in module.state_dict().values())
    found = {
        "weights": weights,
        "averaged_weights": weights if has_average else 0,
        "gradients_and_moments": 3 * trained,
        "activations": rows_of_pass * activations_of_a_row(parts),
    }
    return found | {"all": sum(found.values())}


def activations_of_a_row(parts: RunParts) -> int:
    """Bytes that backward needs of one row; where it runs at once after each supervision step, of one step."""
    task, kept = parts.task, SavedBytes(parts.task.module)
    for name in ("micro_batches", "total_steps"):  # one pass, at the depth of the end of the run
        if hasattr(task, name):
            setattr(task, name, 1)
    set_name, batch, _ = next(iter(parts.data.train_items(1, 0)))
    item: LoaderItem = (set_name, {name: value[:1] for name, value in batch.items()}, 1)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        for fed, _ in task.feed([item]):
            task.train_step(fed, 1)
            break
    return kept.most


class SavedBytes:
    """Counts the bytes that wait for a backward pass, at their most; parameters are there in any case."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.seen = set(self.parameters)  # storages that are counted already
        self.waiting = self.most = 0
        self.is_backward = False

    def pack(self, tensor: Tensor) -> Tensor:
        if self.is_backward:  # a new forward pass begins
            self.seen, self.waiting, self.is_backward = set(self.parameters), 0, False
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.waiting += storage.nbytes()
            self.most = max(self.most, self.waiting)
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        self.is_backward = True
        return tensor
