"""The task of puzzles: one supervision step of a persistent carry for every optimizer step, as in the reference."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem, hash_seed
from engine.runtime.devices import Runtime
from engine.runtime.transfer import Sent
from engine.tasks.protocol import Sums, Task, add_sums, check_shapes, finite_rows, split_rows
from engine.tasks.rollouts import ONE_TRY, Effort, best_rollout, is_right
from models.act import Carry
from models.core import Latents, zeroed
from models.flops import training_flops
from models.losses.puzzles import ACTLossHead

# The name of a metric, and which answers count: questions, labels and answers (B, S) -> (B,).
Rule = tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]


class PuzzleTask(Task):
    """The rows of a global batch are slots. A rank owns a range of them, and gradient accumulation cuts that range into
    micro-batches; each slot keeps its own carry, so that the split changes nothing.
    """

    def __init__(
        self,
        head: ACTLossHead,
        runtime: Runtime,
        seed: int,
        micro_batches: int = 1,
        total_steps: int = 1,
        effort: Effort = ONE_TRY,
        rule: Rule | None = None,
    ) -> None:
        self.head = head
        self.runtime = runtime
        self.seed = seed
        self.micro_batches = micro_batches
        self.total_steps = total_steps
        self.effort = effort
        self.rule = rule
        self.carries: list[Carry] | None = None
        self.is_restored = False  # the carries are those of a checkpoint, and no batch has been seen yet
        self.pending: list[Carry] | None = None
        self.prepared: tuple[LoaderItem, Sent[Batch]] | None = None
        self.generator = torch.Generator()  # on the host: the same draws on every device

    @property
    def module(self) -> ACTLossHead:
        return self.head

    def prepare(self, item: LoaderItem) -> None:
        self.prepared = item, Sent(item[1], self.runtime)

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        _, batch, global_batch_size = item
        self.head.train()
        self.head.model.inner.depth = self.head.model.config.depth_at(step / self.total_steps)
        if self.prepared is None or self.prepared[0] is not item:
            self.prepare(item)
        assert self.prepared is not None
        (_, sent), self.prepared = self.prepared, None
        parts = split_rows(sent.arrived(), self.micro_batches)
        carries = self.carries
        if carries is None or self.is_restored:
            fresh = [self.head.initial_carry(part) for part in parts]
            for saved, new in zip(carries or fresh, fresh, strict=True):
                check_shapes(saved, new)
            carries, self.is_restored = carries or fresh, False
        explored = self._explored_steps(step, len(batch["inputs"])).chunk(self.micro_batches)
        totals: Sums = {}
        self.pending = []
        for part, carry, least_steps in self.until_stopped(zip(parts, carries, explored, strict=True)):
            self.head.model.explored = least_steps
            carry, loss, sums, _, _ = self.head(return_keys=(), carry=carry, batch=part)
            (loss / global_batch_size).backward()
            self.pending.append(carry)
            add_sums(totals, sums)
        return totals

    @property
    def product_dtype(self) -> torch.dtype:
        return self.head.model.inner.dtype

    def flops(self, item: LoaderItem) -> float:
        return training_flops(self.head.model.inner, len(item[1]["inputs"]), item[1]["inputs"].numel())

    def _explored_steps(self, step: int, rows: int) -> Tensor:
        """Of this rank's rows. Exploration depends on the step and the slot alone, not on ranks or micro-batches."""
        self.generator.manual_seed(hash_seed(self.seed, step))
        of_all = self.head.model.explored_steps(rows * self.runtime.world_size, self.generator)
        return self.runtime.to_device(of_all[self.runtime.rank * rows : (self.runtime.rank + 1) * rows])

    def commit(self) -> None:
        self.carries, self.pending = self.pending, None

    def discard(self) -> int:
        """Rows move on as after any step; those that are not finite take new data."""
        assert self.pending is not None
        freed = torch.zeros(1, device=self.runtime.device)
        for carry in self.pending:
            is_finite = self._is_finite(carry.inner_carry)
            carry.inner_carry = zeroed(~is_finite, carry.inner_carry)
            carry.halted = carry.halted | ~is_finite
            freed += (~is_finite).sum()
        self.runtime.all_reduce_sum_([freed])
        self.commit()
        return int(freed.item())

    @torch.no_grad()
    def _is_finite(self, latents: Latents) -> Tensor:
        core = self.head.model.inner
        logits = core.lm_head(core.hidden(getattr(latents, core.answer)))
        return finite_rows(*latents, logits)

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        self.head.eval()
        self.head.model.inner.depth = self.effort.depth_of(self.head.model.config)
        batch = self.runtime.to_device(batch)
        sums, outputs = self._answered(batch, return_keys if self.rule is None else {*return_keys, "preds"})
        if self.rule is not None:
            metric, is_kept = self.rule
            is_counted = (batch["labels"] != IGNORE_LABEL_ID).any(-1)
            sums[metric] = (is_counted & is_kept(batch["inputs"], batch["labels"], outputs["preds"])).sum()
        return sums, {name: outputs[name] for name in return_keys}

    def _answered(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        if self.effort.rollouts > 1:
            return best_rollout(self.head, batch, return_keys, self.effort)
        carry = self.head.initial_carry(batch)
        is_counted = (batch["labels"] != IGNORE_LABEL_ID).any(-1)
        by_step: Sums = {}
        keys = {*return_keys, "logits"} if self.effort.by_step else return_keys
        for step in range(1, self.head.model.inner.depth.max_steps + 1):  # of all rows together; the last one counts
            carry, _, sums, outputs, _ = self.head(return_keys=keys, carry=carry, batch=batch)
            if self.effort.by_step:
                by_step[f"depth_{step}/exact_accuracy"] = (is_counted & is_right(outputs, batch)).sum()
                by_step[f"depth_{step}/token_loss"] = sums["lm_loss"]
        return sums | by_step, outputs

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        """Losses a row in flight, everything else a finished row."""
        count = max(sums["count"], 1)
        return {
            name: value / global_batch_size if name.endswith("loss") else value / (1 if name == "count" else count)
            for name, value in sorted(sums.items())
        }

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        count = max(sums["count"], 1)
        return {name: value / count for name, value in sorted(sums.items()) if name != "count"}

    def eval_metrics(self) -> Collection[str]:
        more = ["pass_any", "pass_plain"] if self.effort.rollouts > 1 else []
        if self.rule is not None:
            more.append(self.rule[0])
        if self.effort.by_step:
            steps = range(1, self.effort.depth_of(self.head.model.config).max_steps + 1)
            more += [f"depth_{step}/{name}" for step in steps for name in ("exact_accuracy", "token_loss")]
        return ["accuracy", "exact_accuracy", "lm_loss", *more, "q_halt_accuracy", "q_halt_loss", "steps"]

    def state_dict(self) -> dict[str, Any]:
        """The carry of all slots in global row order, so that a run may resume on another number of ranks."""
        if self.carries is None:
            return {}
        local = merge_carries(self.carries)
        gather = self.runtime.all_gather_rows
        return {
            "latents": {name: gather(z) for name, z in local.inner_carry._asdict().items()},
            "steps": gather(local.steps),
            "halted": gather(local.halted.to(torch.uint8)),
            "current_data": {name: gather(value) for name, value in local.current_data.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            self.carries = None
            return
        rows = state["steps"].shape[0]
        ranks = self.runtime.world_size
        if rows % (ranks * self.micro_batches):
            raise ValueError(
                f"The checkpoint carries {rows} rows, which {ranks} ranks with {self.micro_batches} micro-batches cannot "
                "share equally. Resume with a number of ranks and gradient_accumulation_steps that divide them."
            )
        own = slice(self.runtime.rank * rows // ranks, (self.runtime.rank + 1) * rows // ranks)
        device = self.runtime.device

        def parts(value: Tensor) -> Sequence[Tensor]:
            return value[own].to(device).chunk(self.micro_batches)

        latents = {name: parts(value) for name, value in state["latents"].items()}
        data = {name: parts(value) for name, value in state["current_data"].items()}
        latents_class = self.head.model.inner.Latents
        self.carries = [
            Carry(
                inner_carry=latents_class(**{name: values[i] for name, values in latents.items()}),
                steps=parts(state["steps"])[i],
                halted=parts(state["halted"])[i].bool(),
                current_data={name: values[i] for name, values in data.items()},
            )
            for i in range(self.micro_batches)
        ]
        self.is_restored = True


def merge_carries(carries: Sequence[Carry]) -> Carry:
    """The carries of micro-batches as one."""
    first = carries[0]
    return Carry(
        inner_carry=type(first.inner_carry)(
            *(torch.cat(z) for z in zip(*(c.inner_carry for c in carries), strict=True))
        ),
        steps=torch.cat([c.steps for c in carries]),
        halted=torch.cat([c.halted for c in carries]),
        current_data={name: torch.cat([c.current_data[name] for c in carries]) for name in first.current_data},
    )
