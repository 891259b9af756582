"""The task of text: every supervision step of a batch within one optimizer step, every example once an epoch."""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem, hash_seed
from engine.runtime.devices import Runtime
from engine.runtime.transfer import Sent, to_host
from engine.tasks.protocol import Sums, Task, add_sums, split_rows
from models.flops import training_flops
from models.losses.text import Supervision, TextLossHead, area_under_roc

DEPTH_SPREAD = 0.5  # of the logarithm of a sampled depth
STEP_METRICS = ["accuracy", "exact_accuracy", "lm_loss", "token_accuracy", "token_loss"]  # of each supervision step
LARGEST_LOSS = 700.0  # whose exponential is a float


class Supervised(NamedTuple):
    """Rows with the places where they are supervised, which are found on the host: on the device, and on the host."""

    batch: Batch
    at: Supervision
    host_batch: Batch
    host_at: Supervision


class TokenTask(Task):
    """One optimizer step a batch, whose loss is a mean over all tokens (or documents) of the global batch.

    That mean runs over ranks and micro-batches alike, so that splitting a batch does not change its update.
    """

    def __init__(self, runtime: Runtime, seed: int, micro_batches: int, reduction: str = "token") -> None:
        self.runtime = runtime
        self.seed = seed
        self.micro_batches = micro_batches
        self.reduction = reduction
        self.prepared: tuple[LoaderItem, list[tuple[Batch, Supervision]], Sent[list[tuple[Batch, Supervision]]]] | None
        self.prepared = None
        self.has_smaller_passes = False

    def take_smaller_passes(self, item: LoaderItem) -> bool:
        rows, passes = len(item[1]["inputs"]), self.micro_batches
        smaller = next((number for number in range(2 * passes, rows + 1) if rows % number == 0), None)
        if smaller is None or self.has_smaller_passes:
            return False
        self.micro_batches, self.has_smaller_passes, self.prepared = smaller, True, None
        return True

    def prepare(self, item: LoaderItem) -> None:
        host = self.located_parts(item)
        self.prepared = item, host, Sent(host, self.runtime)

    def located_parts(self, item: LoaderItem) -> list[tuple[Batch, Supervision]]:
        return [self.located(part) for part in split_rows(item[1], self.micro_batches)]

    def parts(self, item: LoaderItem) -> Iterator[tuple[Supervised, Tensor]]:
        """Each micro-batch of this rank, and its tokens' weights in the mean.

        Those without a supervised token are left out; the first one is not, so that every weight gets a gradient.
        """
        prepared, self.prepared = self.prepared, None
        if prepared is not None and (prepared[0] is not item or len(prepared[1]) != self.micro_batches):
            prepared = None
        host = self.located_parts(item) if prepared is None else prepared[1]
        total = self._global_total([at for _, at in host])  # ranks meet here, before one of them can lack memory
        sent = Sent(host, self.runtime) if prepared is None else prepared[2]
        parts = [Supervised(*there, *here) for there, here in zip(sent.arrived(), host, strict=True)]
        for number, part in enumerate(self.until_stopped(parts)):
            if len(part.at.places) or number == 0:
                yield part, part.at.weights(self.reduction, total)

    def supervised(self, batch: Batch) -> Supervised:
        """A batch of an evaluation."""
        host = self.located(batch)
        return Supervised(*self.runtime.to_device(host), *host)

    def located(self, batch: Batch) -> tuple[Batch, Supervision]:
        rows = self.with_labels(batch)
        return rows, Supervision.of(rows)

    def with_labels(self, batch: Batch) -> Batch:
        """The rows that have a supervised token, at least one row; the others only fill up the last batch of an epoch.

        A compiled step keeps its shape and computes them all.
        """
        has_label = (batch["labels"] != IGNORE_LABEL_ID).any(dim=1)
        if self.runtime.use_compile or bool(has_label.all()):
            return batch
        rows = has_label.nonzero().squeeze(-1) if bool(has_label.any()) else slice(1)
        return {name: value[rows] for name, value in batch.items()}

    def _global_total(self, places: list[Supervision]) -> Tensor:
        """Tokens, or documents, that the loss is a mean over, on the host; 1 where there are none, so that it is 0 and
        not NaN."""
        sizes = [len(at.places) if self.reduction == "token" else len(at.lengths) for at in places]
        total = torch.tensor([float(sum(sizes))])
        self.runtime.all_reduce_sum_([total])
        return total.clamp_min(1)[0]


class TextTask(TokenTask):
    """Unrolled recursion, whose depth is drawn per optimizer step."""

    def __init__(
        self,
        head: TextLossHead,
        runtime: Runtime,
        *,
        seed: int,
        total_steps: int,
        micro_batches: int = 1,
        reduction: str = "token",
        piece_bytes: Tensor | None = None,
        eval_steps: int | None = None,
    ) -> None:
        super().__init__(runtime, seed, micro_batches, reduction)
        self.head = head
        self.eval_steps = eval_steps or head.model.config.halt_max_steps  # supervision steps of an evaluation
        self.total_steps = total_steps
        self.num_steps = 1  # supervision steps of the last optimizer step
        self.piece_bytes = piece_bytes  # (V,) bytes of text that each token stands for

    @property
    def module(self) -> TextLossHead:
        return self.head

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        num_steps = self.start_step(step)
        totals: Sums = {}
        for part, weights in self.parts(item):
            add_sums(totals, self.head.train_on(part.batch, part.at, weights, num_steps))
        return totals

    def start_step(self, step: int) -> int:
        """Set the model up for an optimizer step; returns its number of supervision steps."""
        config, core = self.head.model.config, self.head.model.inner
        self.head.train()
        core.depth = config.depth_at(step / self.total_steps)
        self.num_steps = sampled_depth(config, core.depth.max_steps, hash_seed(self.seed, step))
        return self.num_steps

    @property
    def product_dtype(self) -> torch.dtype:
        return self.head.model.inner.dtype

    def flops(self, item: LoaderItem) -> float:
        is_supervised = item[1]["labels"] != IGNORE_LABEL_ID
        rows, tokens = int(is_supervised.any(dim=1).sum()), int(is_supervised.sum())
        return training_flops(self.head.model.inner, rows, tokens, self.num_steps)

    def eval_batch(self, batch: Batch, return_keys: Collection[str]) -> tuple[Sums, dict[str, Tensor]]:
        unknown = sorted(set(return_keys) - {*batch, "preds"})
        if unknown:
            raise ValueError(
                f"No such outputs: {', '.join(unknown)}. There are: {', '.join(sorted({*batch, 'preds'}))}."
            )
        self.head.eval()
        self.head.model.inner.depth = self.head.model.config.depth_at(1.0)
        sums, preds = self.scores(self.supervised(batch))
        outputs = dict(batch)
        if "preds" in return_keys:  # what the model says at supervised places, IGNORE_LABEL_ID elsewhere
            labels = batch["labels"]
            said = to_host(preds)[0].to(labels.dtype)
            outputs["preds"] = labels.masked_scatter(labels != IGNORE_LABEL_ID, said)
        return sums, {name: outputs[name] for name in return_keys}

    def scores(self, part: Supervised) -> tuple[Sums, Tensor]:
        """Sums of an evaluation, and the last predictions (T,)."""
        sums, preds = self.head.evaluate_on(part.batch, part.at, self.eval_steps)
        if self.piece_bytes is not None:
            sums["bytes"] = self.piece_bytes[part.host_at.labels].sum()
        return sums, preds

    def train_report(self, sums: dict[str, Any], global_batch_size: int) -> dict[str, float]:
        return text_report(sums)

    def eval_report(self, sums: dict[str, Any]) -> dict[str, float]:
        return text_report(sums)

    def eval_metrics(self) -> Collection[str]:
        num_steps = self.eval_steps
        by_depth = [f"depth_{number}/{name}" for number in range(1, num_steps + 1) for name in STEP_METRICS]
        of_bytes = [] if self.piece_bytes is None else ["bits_per_byte"]
        of_halting = ["q_halt_accuracy", "q_halt_auc", "q_halt_loss"] if num_steps > 1 else []
        return [*STEP_METRICS, "perplexity", *of_bytes, *of_halting, "steps", "count", "tokens", *by_depth]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError("The checkpoint was trained with arch.recursion=carry. Resume with that setting.")


def text_report(sums: dict[str, Any]) -> dict[str, float]:
    """Means over documents (`accuracy`, `exact_accuracy`, `lm_loss`, `steps`) and over tokens (the others)."""
    documents, tokens = max(sums["count"], 1), max(sums["tokens"], 1)
    report: dict[str, float] = {}
    for name in sorted(sums):
        metric = name.rpartition("/")[2]
        if metric in ("accuracy", "exact_accuracy", "lm_loss", "steps"):
            report[name] = sums[name] / documents
        elif metric in ("token_accuracy", "token_loss"):
            report[name] = sums[name] / tokens
    report["perplexity"] = perplexity(report["token_loss"])
    if sums.get("bytes"):
        report["bits_per_byte"] = sums["token_loss"] / math.log(2) / sums["bytes"]
    return report | halting_report(sums) | {"count": sums["count"], "tokens": sums["tokens"]}


def halting_report(sums: dict[str, Any]) -> dict[str, float]:
    """How well the halting head predicts what one more step is worth; nothing of a batch that has one step."""
    if not sums.get("q_halt_count"):
        return {}
    report = {name: sums[name] / sums["q_halt_count"] for name in ("q_halt_accuracy", "q_halt_loss")}
    if sum(sums["q_halt_wanted"]) and sum(sums["q_halt_unwanted"]):  # there are two kinds to distinguish
        report["q_halt_auc"] = area_under_roc(sums["q_halt_wanted"], sums["q_halt_unwanted"])
    return report


def perplexity(loss: float) -> float:
    return math.exp(min(loss, LARGEST_LOSS))


def sampled_depth(config: Any, max_steps: int, seed: int) -> int:
    """Supervision steps of one optimizer step: all, or log-normal Poisson around the mean; the deepest can occur."""
    if config.halt_policy == "fixed" or max_steps == 1:
        return max_steps
    generator = torch.Generator().manual_seed(seed)
    # The law starts at one step, so its rate is the mean of the others.
    location = math.log(max(config.halt_mean_steps - 1, 0.05)) - DEPTH_SPREAD**2 / 2
    rate = torch.exp(torch.randn((), generator=generator) * DEPTH_SPREAD + location)
    drawn = 1 + int(torch.poisson(rate, generator=generator).item())
    return min(drawn, max_steps)
