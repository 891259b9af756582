"""Puts the trainer state of a checkpoint into a run, and refuses one that is not that of such a run in one message."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.load import Checkpoint
from engine.tasks.protocol import check_shapes
from engine.train.evaluate import stateful
from engine.train.loop import Run
from engine.train.optimizers import LARGEST_STEP
from engine.train.plan import TrainState

NEEDED = ("step", "iteration", "batches_done")  # what every version has saved
MALFORMED = (LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError)


@contextmanager
def saved_errors(file: Path) -> Iterator[None]:
    """Within, what a file of a checkpoint holds is taken apart; whatever is wrong with it is a ValueError that names it."""
    try:
        yield
    except ValueError as problem:
        if type(problem) is not ValueError:  # lists options that do not fit
            raise
        raise ValueError(f"{file}: {problem}") from problem
    except torch.OutOfMemoryError:
        raise
    except MALFORMED as problem:
        raise ValueError(
            f"{file} does not hold what such a run saves ({type(problem).__name__}: {str(problem)[:200]}). Resume with the "
            "options the run began with, or use another checkpoint."
        ) from problem


def state_of(trainer: Mapping[str, Any]) -> TrainState:
    """Where the run stood; fields that an earlier version did not have keep their defaults."""
    saved = trainer["state"]
    missing = [name for name in NEEDED if name not in saved]
    unknown = sorted(map(str, saved.keys() - {field.name for field in fields(TrainState)}))
    if missing or unknown:
        raise ValueError(f"its state lacks {missing} and has the unknown {unknown}. Use another checkpoint.")
    state = TrainState(**saved)
    for field in fields(state):
        value = getattr(state, field.name)
        is_count = type(value) is int and 0 <= value < LARGEST_STEP
        fits: dict[Any, bool] = {int: is_count, int | None: is_count or value is None}
        if not fits.get(field.type, value is None or type(value) in (int, float)):
            raise ValueError(f"{field.name}={value!r} cannot be the {field.name} of a run. Use another checkpoint.")
    return state


def check_decay(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Refuse a run whose embeddings are to decay otherwise than they began: its optimizer resumes with the saved groups.

    Without the option, as in files of earlier versions, they decay.
    """
    name = "weight_decay_embeddings"
    asked, former = config.get(name, True), (checkpoint.config() or config).get(name, True)
    if asked != former:
        raise ValueError(
            f"{name}={str(asked).lower()}: {checkpoint.path} was trained with {str(former).lower()}, and a run resumes with "
            f"what it began with. Set {name}={str(former).lower()}, or begin a new run with load_checkpoint."
        )


def restore(run: Run, trainer: Mapping[str, Any], ema: dict[str, Tensor] | None) -> None:
    """Continue where a checkpoint stands; its weights have been loaded already."""
    run.state = state_of(trainer)
    run.saved_step = run.state.step
    run.optimizers.load_state_dict(trainer["optimizers"])
    run.task.load_state_dict(trainer["task"])
    states = trainer.get("evaluators", {})  # in files of earlier versions there are none
    for name, evaluator in stateful(run.data.evaluators).items():
        if name in states:
            evaluator.load_state_dict(states[name])
    torch.set_rng_state(trainer["torch_rng"])
    if run.average is not None:
        if ema is None:
            raise ValueError(
                "ema=true: the checkpoint holds no averaged weights. Set ema=false, or start from scratch."
            )
        own = run.average.state_dict()
        check_shapes({name: ema.get(name, value) for name, value in own.items()}, own, "the averaged weights")
        run.average.load_state_dict(ema)
