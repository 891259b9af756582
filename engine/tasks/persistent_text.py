"""Text with persistent state: one supervision step for each optimizer step, as in the reference, but no row is dropped.

Every row of a rank's batch is a slot. A slot keeps its row until the depth drawn for it is spent, then takes the next
row from a queue; an epoch ends when every row has been retired once.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dataset.common import IGNORE_LABEL_ID, Batch, LoaderItem, hash_seed
from engine.runtime.transfer import to_host
from engine.tasks.protocol import Sums, add_sums, check_shapes, finite_rows
from engine.tasks.slots import Slots, Work, map_slots, work_on
from engine.tasks.text import TextTask, sampled_depth
from models.core import in_rows, zeroed
from models.losses.text import Supervision

WANTS_TO_HALT = "wants_to_halt"  # of each row that was computed; no metric


class PersistentTextTask(TextTask):
    """One supervision step of every slot for each optimizer step.

    Learning rate and curriculum follow the rows that have been retired: how many steps an epoch takes is known only
    when it is over.
    """

    def __init__(self, *args: Any, total_rows: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total_rows = total_rows  # that the run will retire, over all ranks
        self.slots: Slots | None = None
        self.pending: Slots | None = None
        self.is_restored = False  # the slots are those of a checkpoint, and no batch has been seen yet
        self.queue: Batch = {}  # rows that wait for a slot
        self.ahead = 0  # loader batches that this rank has opened and that do not count as opened yet
        self.opened = 0  # those of them that count once the step is done
        self.rows_taken = 0  # by this rank
        self.computed = torch.zeros(0, dtype=torch.long)  # slots that the last step computed
        self.rows_retired = 0.0  # by all ranks

    def progress(self) -> float:
        """The fraction of the run's rows that have been retired."""
        return min(1.0, self.rows_retired / self.total_rows)

    def schedule_step(self, step: int) -> float:
        return max(1.0, self.progress() * self.total_steps)

    def feed(self, items: Iterable[LoaderItem]) -> Iterator[tuple[LoaderItem, int]]:
        """The rows in the slots at each optimizer step, and how many loader batches have been opened for it.

        A batch counts as opened when every rank has opened it: all ranks of a resumed run start behind the same batch,
        and a rank that was ahead then skips the batches whose rows its queue holds.
        """
        batches = islice(items, self.ahead, None)
        set_name, is_exhausted = "train", False
        while True:
            while not is_exhausted and self._num_queued() < self._num_free():
                item = next(batches, None)
                if item is None:
                    is_exhausted = True
                else:
                    set_name, batch, _ = item
                    self._enqueue(batch)
                    self.ahead += 1
            self._fill_free_slots()
            if not self.runtime.any_rank(self.slots is not None and bool(self.slots.is_busy.any())):
                self.ahead = 0
                return
            assert self.slots is not None
            self.opened = int(self.runtime.all_gather_rows(torch.tensor([self.ahead])).min())
            yield (set_name, self.slots.data, int(self.slots.is_busy.sum())), self.opened

    def _num_queued(self) -> int:
        return len(self.queue["inputs"]) if self.queue else 0

    def _num_free(self) -> int:
        """Slots without a row; before the first batch there are none, and one row is asked for."""
        return 1 if self.slots is None else int((~self.slots.is_busy).sum())

    def _enqueue(self, batch: Batch) -> None:
        """Append the rows of a batch to the queue, except those without a label, which only fill up the last batch."""
        if self.slots is None or self.is_restored:
            fresh = self._empty_slots(batch)
            check_shapes(self.slots or fresh, fresh)
            self.slots, self.is_restored = self.slots or fresh, False
        is_real = (batch["labels"] != IGNORE_LABEL_ID).any(dim=1)
        rows = {name: value[is_real] for name, value in batch.items()}
        self.queue = {
            name: torch.cat((self.queue[name], value)) if self.queue else value for name, value in rows.items()
        }

    def _empty_slots(self, batch: Batch) -> Slots:
        rows, width = batch["inputs"].shape
        core, device = self.head.model.inner, self.runtime.device
        state = torch.zeros(rows, width, self.head.model.config.hidden_size, dtype=core.dtype, device=device)
        counts = torch.zeros(rows, dtype=torch.int32)
        data = {name: torch.zeros_like(value) for name, value in batch.items()}
        data["labels"] = torch.full_like(batch["labels"], IGNORE_LABEL_ID)
        return Slots(
            data=data,
            latents=core.Latents(*(state for _ in core.Latents._fields)),
            steps=counts,
            depth=counts,
            is_busy=torch.zeros(rows, dtype=torch.bool),
            losses=torch.zeros(rows, width, device=device),
        )

    def _fill_free_slots(self) -> None:
        """Move rows from the queue into free slots; a slot that gets none has no label and is not supervised."""
        slots = self.slots
        if slots is None:
            return
        free = (~slots.is_busy).nonzero().squeeze(-1)
        filled = free[: self._num_queued()]
        count = len(filled)
        slots.data = {name: value.clone() for name, value in slots.data.items()}
        slots.data["labels"][free] = IGNORE_LABEL_ID
        for name, rows in self.queue.items():
            slots.data[name][filled] = rows[:count]
        self.queue = {name: rows[count:] for name, rows in self.queue.items()}
        depths = [self._depth_of_row(self.rows_taken + i) for i in range(count)]
        self.rows_taken += count
        slots.depth = slots.depth.index_copy(0, filled, torch.tensor(depths, dtype=torch.int32))
        slots.steps = slots.steps.index_fill(0, filled, 0)
        slots.is_busy = slots.is_busy.index_fill(0, filled, True)

    def _depth_of_row(self, number: int) -> int:
        """The depth of a row, drawn from its number; with halt_policy=learned the most it may take."""
        model = self.head.model
        most = model.config.depth_at(self.progress()).max_steps
        if model.config.halt_policy == "learned":
            return most
        number_of_all = number * self.runtime.world_size + self.runtime.rank
        return sampled_depth(model.config, most, hash_seed(self.seed + 1, number_of_all))

    def start_step(self, step: int) -> int:
        self.head.train()
        self.head.model.inner.depth = self.head.model.config.depth_at(self.progress())
        return 1

    def prepare(self, item: LoaderItem) -> None:
        """Rows wait in the queue; which slots they get is known only when the step before is done."""
        return

    def train_step(self, item: LoaderItem, step: int) -> Sums:
        self.start_step(step)
        slots = self.slots
        assert slots is not None
        rows = len(slots.steps) // self.micro_batches
        parts = [
            map_slots(lambda tensor, i=i: tensor[i * rows : (i + 1) * rows], slots) for i in range(self.micro_batches)
        ]
        is_compiled = self.runtime.use_compile
        work = [work_on(part, is_first=part is parts[0], keeps_shape=is_compiled) for part in parts]
        total = self._global_total([host.at for host in work])
        there = self.runtime.to_device(work)
        totals: Sums = {}
        stepped, halting = [], []
        for part, host, sent in self.until_stopped(zip(parts, work, there, strict=True)):
            if len(host.rows):
                part, wants_to_halt = self._step_rows(part, host, sent, total, totals)
                halting.append(wants_to_halt)
            stepped.append(part)
        self.pending = map_slots(lambda *tensors: torch.cat(tensors), *stepped)
        if self.head.model.config.halt_policy == "learned":
            self.computed = torch.cat([i * rows + host.rows for i, host in enumerate(work)])
            totals[WANTS_TO_HALT] = torch.cat(halting)
        return totals

    def _step_rows(self, part: Slots, host: Work, sent: Work, total: Tensor, totals: Sums) -> tuple[Slots, Tensor]:
        """The part after a step of the rows that are worked on, and which of those want to halt."""
        is_whole, width = len(host.rows) == len(part.steps), part.losses.shape[1]
        latents, losses = part.latents, part.losses
        if not is_whole:
            latents, losses = type(latents)(*(z[sent.rows] for z in latents)), losses[sent.rows]
        latents, token_losses, q, sums = self.head.persistent_step(
            sent.data, latents, sent.is_fresh, sent.at, sent.at.weights(self.reduction, total),
            losses.flatten()[sent.at.places], sent.had_step,
        )  # fmt: skip
        add_sums(totals, sums)
        losses = torch.zeros_like(losses).flatten().index_copy_(0, sent.at.places, token_losses).view_as(losses)
        steps = part.steps.index_add(0, host.rows, torch.ones_like(host.rows, dtype=part.steps.dtype))
        if not is_whole:
            latents = type(latents)(
                *(old.index_copy(0, sent.rows, new) for old, new in zip(part.latents, latents, strict=True))
            )
            losses = part.losses.index_copy(0, sent.rows, losses)
        stepped = Slots(part.data, latents, steps, part.depth, part.is_busy & (steps < part.depth), losses)
        return stepped, self._wants_to_halt(q, sent.at, len(host.rows), width)

    def _wants_to_halt(self, q: Tensor, at: Supervision, rows: int, width: int) -> Tensor:
        """Rows whose supervised tokens on average predict that one more step brings nothing."""
        row = at.places // width
        summed = torch.zeros(rows, device=q.device).index_add_(0, row, torch.sigmoid(q))
        count = torch.zeros(rows, device=q.device).index_add_(0, row, torch.ones_like(q))
        return summed > 0.5 * count

    def observe(self, step: int, sums: Sums, grad_norm: float) -> None:
        """Rows that want to halt do so, except that for exploration a few random ones must first take a random number of
        steps."""
        slots, config = self.pending, self.head.model.config
        if config.halt_policy != "learned":
            return
        assert slots is not None
        slots.is_busy[self.computed[sums.pop(WANTS_TO_HALT)]] = False
        if not config.halt_exploration_prob or config.halt_max_steps == 1:
            return
        rows, ranks = len(slots.steps), self.runtime.world_size
        generator = torch.Generator().manual_seed(hash_seed(self.seed, step))
        explores = torch.rand(rows * ranks, generator=generator) < config.halt_exploration_prob
        wanted = torch.randint(2, config.halt_max_steps + 1, (rows * ranks,), generator=generator) * explores
        own = wanted[self.runtime.rank * rows : (self.runtime.rank + 1) * rows]
        holds_row = (slots.data["labels"] != IGNORE_LABEL_ID).any(dim=1)
        slots.is_busy = slots.is_busy | (holds_row & (slots.steps < own) & (slots.steps < slots.depth))

    def commit(self) -> None:
        assert self.slots is not None and self.pending is not None
        retired = (self.slots.is_busy & ~self.pending.is_busy).sum().float().reshape(1)
        self.runtime.all_reduce_sum_([retired])
        self.rows_retired += retired.item()
        self.ahead -= self.opened
        self.slots, self.pending = self.pending, None

    def discard(self) -> int:
        """Rows move on as after any step; those that are not finite are retired."""
        assert self.slots is not None and self.pending is not None
        stepped = self.pending
        there = finite_rows(*stepped.latents, stepped.losses)
        stepped.latents = zeroed(~there, stepped.latents)  # zero times a stale NaN would still be NaN
        stepped.losses = torch.where(in_rows(there, stepped.losses), stepped.losses, 0)
        (is_finite,) = to_host(there)
        stepped.is_busy = stepped.is_busy & is_finite
        freed = (self.slots.is_busy & ~is_finite).sum().float().reshape(1)
        self.runtime.all_reduce_sum_([freed])
        self.commit()
        return int(freed.item())

    def state_dict(self) -> dict[str, Any]:
        """The slots, the queue and the counts of all ranks; queues differ in length, so each is padded to a batch."""
        slots = self.slots
        if slots is None:
            return {}
        assert self._num_queued() <= len(slots.steps)
        padded = {name: torch.zeros_like(value) for name, value in slots.data.items()}
        for name, value in self.queue.items():
            padded[name][: len(value)] = value
        gather = self.runtime.all_gather_rows

        def gathered(rows: Batch) -> Batch:
            return {name: gather(value) for name, value in rows.items()}

        return {
            "data": gathered(slots.data),
            "latents": gathered(slots.latents._asdict()),
            "slots": gathered({name: getattr(slots, name) for name in ("steps", "depth", "losses")}),
            "is_busy": gather(slots.is_busy.to(torch.uint8)),
            "queue": gathered(padded),
            "queued": gather(torch.tensor([self._num_queued()])),
            "ahead": gather(torch.tensor([self.ahead])),
            "rows_taken": gather(torch.tensor([self.rows_taken])),
            "rows_retired": self.rows_retired,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slots, self.queue, self.ahead = None, {}, 0
        if not state:
            return
        rank, ranks, device = self.runtime.rank, self.runtime.world_size, self.runtime.device
        if len(state["queued"]) != ranks:
            raise ValueError(
                f"The checkpoint carries rows of {len(state['queued'])} ranks, this run has {ranks}. "
                "Text with arch.recursion=carry resumes on as many ranks as it was saved with."
            )

        def own(value: Tensor) -> Tensor:
            return value.chunk(ranks)[rank]

        latents_class, counts = self.head.model.inner.Latents, state["slots"]
        self.slots = Slots(
            data={name: own(value) for name, value in state["data"].items()},
            latents=latents_class(**{name: own(value).to(device) for name, value in state["latents"].items()}),
            steps=own(counts["steps"]),
            depth=own(counts["depth"]),
            is_busy=own(state["is_busy"]).bool(),
            losses=own(counts["losses"]).to(device),
        )
        waiting, self.ahead = int(state["queued"][rank]), int(state["ahead"][rank])
        self.queue = {name: own(value)[:waiting] for name, value in state["queue"].items()}
        check_shapes(state["queue"], state["data"], "the queue")
        self.rows_taken, self.rows_retired = int(state["rows_taken"][rank]), float(state["rows_retired"])
        self.is_restored = True
