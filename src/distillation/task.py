"""The task of distillation: one optimizer step learns from a global batch, for which the teacher is asked once."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dataset.common import LoaderItem
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Sums, add_sums, over_ranks
from engine.tasks.text import Supervised, TextTask, halting_report, perplexity
from models.losses.distill import TeacherTargets
from src.distillation.corpus.packed_rows import NO_ROW
from src.distillation.student.head import DistillHead
from src.distillation.student.saddle import PlateauController
from src.distillation.targets.signal import Teacher

OBSERVED = ("ce_loss", "kd_loss", "tokens")  # what the controller and the check of the first loss are told of
FIRST_LOSS_SLACK = 0.5  # nats by which the loss of a fresh student may differ from that of an even guess


class DistillTask(TextTask):
    """The teacher answers once for each micro-batch; every supervision step of a recursive student uses that answer.

    Without a teacher the student learns from the text alone.
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

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        num_steps = self.start_step(step)
        totals: Sums = {}
        for part, weights in self.parts(item):
            add_sums(totals, self.head.train_on(part.batch, part.at, weights, num_steps, self._targets(part)))
        return totals

    def _targets(self, part: Supervised) -> TeacherTargets | None:
        """What the teacher says of the supervised tokens, without gradient."""
        if self.teacher is None:
            return None
        divergence, facts = self.head.divergence, self.teacher.facts
        needs_norm = divergence.tail != "renorm" or facts.kind == "dense"
        column = facts.column(divergence.temperature if needs_norm else 1.0)
        with torch.no_grad():
            signal = self.teacher.signal(part.host_batch)
            on_host = signal.valid.device.type == "cpu"
            places = part.host_at.places if on_host else part.at.places.to(signal.valid.device)
            return self.runtime.to_device(signal.targets(places, column))

    def observe(self, step: int, sums: Sums, grad_norm: float) -> None:
        """Check the first loss, and tell the controller how the step went."""
        if not self.checks_first_loss and self.controller is None:
            return
        of_all = over_ranks({name: sums[name] for name in OBSERVED if name in sums}, self.runtime)
        tokens = of_all["tokens"] or math.nan
        loss = of_all["ce_loss"] / tokens
        if self.checks_first_loss:
            self._check_first_loss(loss)
        if self.controller is None:
            return
        if "kd_loss" in of_all:
            loss = self.head.alpha * loss + (1 - self.head.alpha) * (of_all["kd_loss"] / tokens)
        for event in self.controller.observe(step, loss, grad_norm):
            self.warn(str(event))
        sums["lr_factor"] = torch.tensor(self.controller.factor(step))

    def _check_first_loss(self, found: float) -> None:
        """A fresh student knows nothing and should not be sure of anything."""
        self.checks_first_loss = False
        even = math.log(self.head.model.config.vocab_size)
        if not abs(found - even) <= FIRST_LOSS_SLACK:
            self.warn(
                f"warning: the first cross-entropy is {found:.3f}, but an even guess has {even:.3f}. Something is wrong "
                "with the student's initial weights, or with the ids of the data."
            )

    def scores(self, part: Supervised) -> tuple[Sums, Tensor]:
        targets = self._targets(part) if self.knows_held_out else None
        sums, preds = self.head.evaluate_on(part.batch, part.at, self.eval_steps, targets)
        return sums | {"rows": (part.host_batch["row_id"] != NO_ROW).sum()}, preds

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        """Cross-entropy and divergence apart, in nats, and the mix that is learnt from."""
        if not sums["tokens"]:  # a batch of empty rows
            return {}
        report = means(sums, {"ce_loss": "ce", "kd_loss": "kd", "right": "accuracy", "agreed": "agreement"})
        mix = self.head.alpha * report["ce"] + (1 - self.head.alpha) * report["kd"] if "kd" in report else report["ce"]
        factor = {"lr_factor": sums["lr_factor"] / self.runtime.world_size} if "lr_factor" in sums else {}
        return {"loss": mix} | report | halting_report(sums) | factor | {"tokens": int(sums["tokens"])}

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        report = means(
            sums, {"ce_loss": "token_loss", "kd_loss": "kl", "right": "token_accuracy", "agreed": "agreement"}
        )
        report["perplexity"] = perplexity(report["token_loss"])
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
