"""How a Hugging Face causal model is trained on packed rows by the engine's loop.

The labels of a packed batch stand one to the left already (`labels[t]` is the token after `inputs[t]`), so the loss is
taken here and not by the model, which would shift them a second time.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from dataset.common import Batch, LoaderItem, hash_seed
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Sums, add_sums
from engine.tasks.text import Supervised, TokenTask, perplexity
from models.losses.chunked import chunked_cross_entropy
from src.distillation.teachers.packed_attention import head_of, packed_hidden
from src.distillation.tuning.lora import TunedTeacher


class TeacherTask(TokenTask):
    """Cross-entropy of the next token."""

    def __init__(
        self,
        teacher: TunedTeacher,
        runtime: Runtime,
        *,
        seed: int,
        micro_batches: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(runtime, seed, micro_batches)
        self.teacher = teacher
        self.dtype = dtype  # of the products; float32: all is computed as it stands

    @property
    def module(self) -> TunedTeacher:
        return self.teacher

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        self.teacher.train()
        # Dropout depends on the step alone, so that a resumed run drops what the uninterrupted one would have.
        torch.manual_seed(hash_seed(self.seed, step * self.runtime.world_size + self.runtime.rank))
        totals: Sums = {}
        for part, weights in self.parts(item):
            loss, sums = self.scores(part, weights)
            loss.backward()
            add_sums(totals, sums)
        return totals

    def scores(self, part: Supervised, weights: Tensor) -> tuple[Tensor, Sums]:
        """The weighted loss, and sums over tokens."""
        causal, at = self.teacher.causal, part.at
        with torch.autocast(self.runtime.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = packed_hidden(causal, part.batch)
        hidden = hidden.flatten(0, 1)[at.places].to(self.dtype)
        loss, tokens = chunked_cross_entropy(hidden, head_of(causal), at.labels, weights, is_stablemax=False)
        sums = {
            "count": (part.host_batch["documents"].amax(1) + 1).sum(),
            "tokens": torch.tensor(len(at.places)),
            "loss": tokens.losses.sum(),
            "accuracy": (tokens.preds == at.labels).sum(),
        }
        return loss, sums

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        assert not return_keys, "nothing asks a teacher for its outputs"
        self.teacher.eval()
        part = self.supervised(batch)
        return self.scores(part, torch.ones(len(part.at.places), device=self.runtime.device))[1], {}

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
