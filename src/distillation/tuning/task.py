"""How a Hugging Face causal model is trained on packed rows by the engine's loop.

The labels of a packed batch stand one to the left already (`labels[t]` is the token after `inputs[t]`), so the loss is
taken here and not by the model, which would shift them a second time.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Sums, add_sums, each_once, hash_seed, split_rows
from models.losses.chunked import chunked_cross_entropy
from src.distillation.teachers.packed_attention import head_of, packed_hidden
from src.distillation.tuning.lora import TunedTeacher

LARGEST_LOSS = 700.0  # whose exponential is a float


class TeacherTask:
    """Cross-entropy of the next token, as a mean over all tokens of the global batch."""

    def __init__(
        self,
        teacher: TunedTeacher,
        runtime: Runtime,
        *,
        seed: int,
        micro_batches: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.teacher = teacher
        self.runtime = runtime
        self.seed = seed
        self.micro_batches = micro_batches
        self.dtype = dtype  # of the products; float32: all is computed as it stands
        self.base_loss: float | None = None  # held-out, before the first step

    @property
    def module(self) -> TunedTeacher:
        return self.teacher

    def feed(self, items: Iterable[LoaderItem]) -> Iterator[tuple[LoaderItem, int]]:
        return each_once(items)

    def schedule_step(self, step: int) -> float:
        return step

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        _, batch, _ = item
        self.teacher.train()
        # Dropout depends on the step alone, so that a resumed run drops what the uninterrupted one would have.
        torch.manual_seed(hash_seed(self.seed, step * self.runtime.world_size + self.runtime.rank))
        parts = split_rows(self.runtime.to_device(batch), self.micro_batches)
        total = self._global_tokens(parts)
        totals: Sums = {}
        for part in parts:
            loss, sums = self.scores(part, 1 / total)
            loss.backward()
            add_sums(totals, sums)
        return totals

    def _global_tokens(self, parts: list[Batch]) -> Tensor:
        count = torch.stack([(part["labels"] != IGNORE_LABEL_ID).sum() for part in parts]).sum().float()[None]
        self.runtime.all_reduce_sum_([count])
        return count.clamp_min(1)[0]

    def scores(self, batch: Batch, weight: Tensor) -> tuple[Tensor, Sums]:
        """The loss, every token with the same weight, and sums over tokens."""
        causal = self.teacher.causal
        labels = batch["labels"].flatten()
        places = labels != IGNORE_LABEL_ID
        device = self.runtime.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            hidden = packed_hidden(causal, batch)
        hidden = hidden.flatten(0, 1)[places].to(self.dtype)
        weights = weight.expand(len(hidden))
        loss, tokens = chunked_cross_entropy(hidden, head_of(causal), labels[places], weights, is_stablemax=False)
        sums = {
            "count": (batch["documents"].amax(1) + 1).sum(),
            "tokens": places.sum(),
            "loss": tokens.losses.sum(),
            "accuracy": (tokens.preds == labels[places]).sum(),
        }
        return loss, sums

    def commit(self) -> None:
        """Nothing lasts from one step to the next."""

    def discard(self) -> None:
        """Nothing lasts from one step to the next."""

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        assert not return_keys, "nothing asks a teacher for its outputs"
        self.teacher.eval()
        _, sums = self.scores(self.runtime.to_device(batch), torch.ones((), device=self.runtime.device))
        return sums, {}

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        return self.eval_report(sums)

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        tokens = max(sums["tokens"], 1)
        loss = sums["loss"] / tokens
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "accuracy": sums["accuracy"] / tokens,
            "tokens": sums["tokens"],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"base_loss": self.base_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "base_loss" not in state:
            raise ValueError("The checkpoint is not one of scripts/finetune_teacher.py. Give one of those.")
        self.base_loss = state["base_loss"]


def perplexity(loss: float) -> float:
    return math.exp(min(loss, LARGEST_LOSS))
