"""The gradients of one optimizer step on this rank, in passes that fit into the device's memory."""

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

import torch

from dataset.common import LoaderItem
from engine.runtime.devices import Runtime
from engine.runtime.signals import CutShortError
from engine.tasks.protocol import Sums, Task


class Outcome(IntEnum):
    """How a rank got through its passes; what is worst on any rank holds for all."""

    DONE = 0
    NO_MEMORY = 1
    CUT_SHORT = 2


def gradients_of(
    task: Task,
    item: LoaderItem,
    step: int,
    runtime: Runtime,
    zero_grad: Callable[[], None],
    say: Callable[[str], None],
) -> Sums:
    """Forward and backward of the item, with its sums.

    Where a pass does not fit into memory, all ranks take smaller ones from now on and repeat the step, whose draws
    depend on its number alone. Raises CutShortError, without gradients, if a signal asks one of the ranks to stop.
    """
    while True:
        sums: Sums = {}
        outcome = Outcome.CUT_SHORT
        with suppress(CutShortError):
            try:
                sums = task.train_step(item, step)
                outcome = Outcome.DONE
            except torch.OutOfMemoryError:  # its traceback, gone below, holds on to the tensors of the pass
                outcome = Outcome.NO_MEMORY
        outcome = Outcome(runtime.largest(outcome))
        if outcome == Outcome.DONE:
            return sums
        sums.clear()
        zero_grad()
        if outcome == Outcome.CUT_SHORT:
            raise CutShortError("the step")
        passes = task.micro_batches
        if not task.take_smaller_passes(item):
            raise ValueError(
                f"Out of memory on {runtime.device} at step {step}, with {passes} passes a step. Set tokens_per_pass "
                "(text) below what the run's first line says, or gradient_accumulation_steps (puzzles, distillation) "
                "higher, or take a smaller model."
            )
        runtime.free_unused_memory()
        say(
            f"step {step}: out of memory on a rank; steps take {task.micro_batches} passes instead of {passes} from now "
            "on, with the same updates. A smaller tokens_per_pass (distillation: more gradient_accumulation_steps) spares "
            "this try."
        )
