"""Tries at the gradients of one optimizer step on this rank, until its passes fit into the device's memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from types import TracebackType

import torch

from dataset.common import LoaderItem
from engine.runtime.devices import Runtime
from engine.runtime.signals import CutShortError
from engine.tasks.protocol import Task


class Outcome(IntEnum):
    """How a rank got through its passes; what is worst on any rank holds for all."""

    DONE = 0
    NO_MEMORY = 1
    CUT_SHORT = 2


class Try(AbstractContextManager["Try"]):
    """Within, the task takes its step; a signal to stop and a lack of memory end that, and are told after it."""

    def __init__(self) -> None:
        self.outcome = Outcome.DONE

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> bool:
        if kind is None:
            return False
        if issubclass(kind, CutShortError):
            self.outcome = Outcome.CUT_SHORT
        elif issubclass(kind, torch.OutOfMemoryError):
            self.outcome = Outcome.NO_MEMORY
        else:
            return False
        return True  # nothing may hold on to the traceback, which holds on to the tensors of the pass


def tries(
    task: Task,
    item: LoaderItem,
    step: int,
    runtime: Runtime,
    zero_grad: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[Try]:
    """Each is to hold the task's step on the item; after the last one the gradients are there.

    Where a pass does not fit into memory, all ranks take smaller ones from now on and repeat the step, whose draws
    depend on its number alone. Raises CutShortError, without gradients, if a signal asks one of the ranks to stop.
    """
    while True:
        attempt = Try()
        yield attempt
        outcome = Outcome(runtime.largest(attempt.outcome))
        if outcome == Outcome.DONE:
            return
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
