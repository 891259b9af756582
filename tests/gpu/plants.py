"""Mistakes that only a device shows, planted into the product: each must be refused where the wrong tensor is used; and
what the pretended device does with copies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from models import core
from models.losses.text import TextLossHead
from src.distillation.teachers.causal_lm import weights_fingerprint
from tests.gpu.place import Place, text_items, text_run, train
from tests.gpu.pretended import OnDevice, Pretended, RefusedError


def trains(at: Place) -> Any:
    return train(at, text_run(at), text_items())


@contextmanager
def loss_weights_on_the_host(at: Place) -> Iterator[Callable[[Place], Any]]:
    right = TextLossHead.score_answer

    def wrong(self: Any, hidden: Any, at: Any, weights: Any, targets: Any) -> Any:
        return right(self, hidden, at, weights.cpu(), targets)

    with mock.patch.object(TextLossHead, "score_answer", wrong):
        yield trains


@contextmanager
def mask_on_the_host(at: Place) -> Iterator[Callable[[Place], Any]]:
    right = core.build_mask

    def wrong(**options: Any) -> Any:
        mask = right(**options)
        return replace(mask, bias=None if mask.bias is None else mask.bias.cpu())

    with mock.patch.object(core, "build_mask", wrong):
        yield trains


@contextmanager
def numpy_of_the_device(at: Place) -> Iterator[Callable[[Place], Any]]:
    with mock.patch.object(OnDevice, "cpu", lambda self: self):
        yield lambda at: weights_fingerprint(text_run(at).task.module)


@contextmanager
def copy_read_too_early(at: Place) -> Iterator[Callable[[Place], Any]]:
    def reads(at: Place) -> None:
        copy = torch.ones(2, device=at.device).to("cpu", non_blocking=True)
        early = copy.tolist()
        torch.cuda.synchronize()
        raise RefusedError(f"{early}, then {copy.tolist()}")

    yield reads


@contextmanager
def uploads(at: Place) -> Iterator[Callable[[Place], Any]]:
    def sends(at: Place) -> None:
        with at.measured():
            torch.ones(2).pin_memory().to(at.device, non_blocking=True)  # the only one that does not wait
            torch.ones(2).pin_memory().to(at.device)
            torch.ones(2).to(at.device, non_blocking=True)
            torch.tensor([1.0], device=at.device)
        raise RefusedError(f"{sum(Pretended.current().waited.values())} of 4 uploads waited")

    yield sends


PLANTS = {
    "a copy that is read too early": copy_read_too_early,
    "uploads": uploads,
    "loss weights on the host": loss_weights_on_the_host,
    "a mask on the host": mask_on_the_host,
    "numpy of the device": numpy_of_the_device,
}
