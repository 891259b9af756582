"""The task of distillation: one optimizer step learns from a global batch, about which the teacher is asked once."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Sums, add_sums, hash_seed, split_rows
from engine.tasks.text import TextTask, sampled_depth
from models.losses.distill import TeacherTargets
from models.losses.text import Supervision, area_under_roc
from src.distillation.cache.format import CacheError
from src.distillation.corpus.reader import NO_ROW
from src.distillation.student.head import DistillHead
from src.distillation.student.saddle import PlateauController
from src.distillation.targets.signal import Teacher

FIRST_LOSS_SLACK = 0.5  # nats by which the loss of a fresh student may differ from that of an even guess
LARGEST_LOSS = 700.0  # whose exponential is a float


class DistillTask(TextTask):
    """The loss is a mean over all tokens of the global batch, however it is split into micro-batches.

    The teacher answers once for each micro-batch; every supervision step of a recursive student uses that answer.
    Without a teacher the student learns from the text alone. What the teacher says is asked anew after a resume.
    """

    head: DistillHead

    def __init__(
        self,
        head: DistillHead,
        runtime: Runtime,
        teacher: Teacher | None,
        *,
        seed: int,
        total_steps: int,
        micro_batches: int = 1,
        knows_held_out: bool = True,
        controller: PlateauController | None = None,
        checks_first_loss: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(head, runtime, seed=seed, total_steps=total_steps, micro_batches=micro_batches)
        self.teacher = teacher
        self.knows_held_out = knows_held_out  # whether the teacher may be asked about held-out rows
        self.controller = controller
        self.checks_first_loss = checks_first_loss
        self.warn = warn
        self.has_warned = False

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        _, batch, _ = item
        self.head.train()
        config, core = self.head.model.config, self.head.model.inner
        core.depth = config.depth_at(step / self.total_steps)
        parts = split_rows(self.runtime.to_device(batch), self.micro_batches)
        places = [Supervision.of(part) for part in parts]
        total = self._global_total(places)
        num_steps = sampled_depth(config, core.depth.max_steps, hash_seed(self.seed, step))
        totals: Sums = {}
        for part, at in zip(parts, places, strict=True):
            if len(at.places):  # the last batch of an epoch may hold empty rows
                add_sums(totals, self.head.learn(part, at, self._targets(part, at), total, num_steps))
        if self.checks_first_loss:
            self._check_first_loss(totals)
        if self.controller is not None:
            self._observe(totals, step)
        return totals

    def _targets(self, batch: Batch, at: Supervision) -> TeacherTargets | None:
        """What the teacher says of the supervised tokens, without gradient."""
        if self.teacher is None:
            return None
        divergence, facts = self.head.divergence, self.teacher.facts
        needs_norm = divergence.tail != "renorm" or facts.kind == "dense"
        column = facts.column(divergence.temperature if needs_norm else 1.0)
        with torch.no_grad():
            return self.teacher.signal(batch).targets(at.places, column)

    def _held_out_targets(self, batch: Batch, at: Supervision) -> TeacherTargets | None:
        """A cache may hold the rows of training alone: that is no error, and is reported once."""
        if not self.knows_held_out:
            return None
        try:
            return self._targets(batch, at)
        except CacheError as error:
            if not self.has_warned:
                self.warn(f"note: held-out rows are evaluated without the teacher. {error}")
            self.has_warned = True
            return None

    def _check_first_loss(self, sums: Sums) -> None:
        """A fresh student knows nothing and should not be sure of anything."""
        self.checks_first_loss = False
        even, found = math.log(self.head.model.config.vocab_size), self._mean(sums, "ce_loss")
        if not abs(found - even) <= FIRST_LOSS_SLACK:
            self.warn(
                f"warning: the first cross-entropy is {found:.3f}, but an even guess over "
                f"{self.head.model.config.vocab_size} tokens has {even:.3f}. Something is wrong with the student's "
                "initial weights, or with the ids of the data."
            )

    def _mean(self, sums: Sums, name: str) -> float:
        return float(sums[name] / sums["tokens"]) if "tokens" in sums else math.nan

    def _observe(self, sums: Sums, step: int) -> None:
        """Tell the controller how this step went, before the learning rate of the step is asked for."""
        assert self.controller is not None
        gradients = [p.grad for p in self.head.parameters() if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(gradients)).square().sum().sqrt()) if gradients else math.nan
        loss = self._mean(sums, "ce_loss")
        if "kd_loss" in sums:
            loss = self.head.alpha * loss + (1 - self.head.alpha) * self._mean(sums, "kd_loss")
        for event in self.controller.observe(step, loss, norm):
            self.warn(str(event))
        sums["lr_factor"] = torch.tensor(self.controller.factor(step))

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        unknown = sorted(set(return_keys) - {*batch, "preds"})
        if unknown:
            raise ValueError(f"An evaluation of a student returns no {', '.join(unknown)}.")
        self.head.eval()
        config = self.head.model.config
        self.head.model.inner.depth = config.depth_at(1.0)
        batch = self.runtime.to_device(batch)
        at = Supervision.of(batch)
        targets = self._held_out_targets(batch, at)
        sums, preds = self.head.evaluate(batch, at, targets, config.halt_max_steps)
        sums["rows"] = (batch["row_id"] != NO_ROW).sum()
        outputs = dict(batch)
        if "preds" in return_keys:
            places = torch.full_like(batch["labels"], IGNORE_LABEL_ID).flatten()
            outputs["preds"] = places.index_copy_(0, at.places, preds.to(places.dtype)).view_as(batch["labels"])
        return sums, {name: outputs[name] for name in return_keys}

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        """Cross-entropy and divergence apart, in nats, and the mix that is learnt from."""
        report = means(sums, {"ce_loss": "ce", "kd_loss": "kd", "right": "accuracy", "agreed": "agreement"})
        if not report:  # a batch of empty rows
            return {}
        mix = self.head.alpha * report["ce"] + (1 - self.head.alpha) * report["kd"] if "kd" in report else report["ce"]
        told = {"lr_factor": sums["lr_factor"]} if "lr_factor" in sums else {}
        return {"loss": mix} | report | halting_report(sums) | told | {"tokens": int(sums["tokens"])}

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        report = means(
            sums, {"ce_loss": "token_loss", "kd_loss": "kl", "right": "token_accuracy", "agreed": "agreement"}
        )
        report["perplexity"] = math.exp(min(report["token_loss"], LARGEST_LOSS))
        return report | halting_report(sums) | {name: int(sums[name]) for name in ("tokens", "count", "rows")}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.controller is None else {"controller": self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A controller that was off until now starts with nothing seen; the state of one that is off now is left."""
        if self.controller is not None and "controller" in state:
            self.controller.load_state_dict(state["controller"])


def means(sums: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    """Means over tokens, the teacher's over those that it says something of, under the names they are reported by."""
    report: dict[str, float] = {}
    for key in sorted(sums):
        prefix, slash, name = key.rpartition("/")
        if name in names:
            count = sums["taught_tokens" if name in ("kd_loss", "agreed") else "tokens"]
            report[prefix + slash + names[name]] = sums[key] / max(count, 1)
    return report


def halting_report(sums: dict[str, Any]) -> dict[str, float]:
    """How well the halting head of a recursive student tells what one more step is worth."""
    if not sums.get("q_halt_count"):
        return {}
    report = {
        "q_halt_accuracy": sums["q_halt_accuracy"] / sums["q_halt_count"],
        "q_halt_loss": sums["q_halt_loss"] / sums["q_halt_count"],
    }
    if sum(sums["q_halt_wanted"]) and sum(sums["q_halt_unwanted"]):
        report["q_halt_auc"] = area_under_roc(sums["q_halt_wanted"], sums["q_halt_unwanted"])
    return report
