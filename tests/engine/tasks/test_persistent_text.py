"""Text with a lasting carry: rows come and go by themselves, none is lost or seen twice, and a resume changes nothing."""

import dataclasses
import io
from collections import Counter
from unittest import mock

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from engine.tasks.persistent_text import PersistentTextTask
from engine.tasks.protocol import fetched
from engine.tasks.text import TextTask
from tests.engine.text_samples import (
    CPU,
    document_numbers,
    gradients,
    make_head,
    make_reader,
    make_store,
    on_ranks,
)

DOCUMENTS, ROWS = 18, 4
POLICIES = {
    "fixed": {"halt_policy": "fixed"},
    "sampled": {"halt_policy": "sampled", "halt_mean_steps": 2},
    "learned": {"halt_policy": "learned"},
    "exploring": {"halt_policy": "learned", "halt_exploration_prob": 0.2},
}
every_policy = pytest.mark.parametrize("policy", POLICIES)


def make_task(policy="sampled", runtime=CPU, micro_batches=1, **options) -> PersistentTextTask:
    head = make_head(recursion="carry", **(POLICIES[policy] | options))
    return PersistentTextTask(
        head, runtime, seed=5, total_steps=100, total_rows=2 * num_rows(), micro_batches=micro_batches
    )


def num_rows(packing=True) -> int:
    return len(make_reader(make_store(DOCUMENTS), 1, packing=packing).rows)


def reader_of(runtime, start=None, **options):
    reader = make_reader(make_store(DOCUMENTS), ROWS, rank=runtime.rank, world_size=runtime.world_size, **options)
    if start is not None:
        reader.start_from(*start)
    return reader


class Watch:
    """Drives a task and notes what each step worked on."""

    def __init__(self, task: PersistentTextTask) -> None:
        self.task = task
        self.taken: Counter[int] = Counter()  # documents of rows that began
        self.retired: Counter[int] = Counter()
        self.steps_of_row: Counter[int] = Counter()  # how many steps rows had when they were retired
        self.reports: list[dict[str, float]] = []
        self.opened = 0

    def epoch(self, reader, stop_after=None) -> "Watch":
        """Until the epoch is over, or for so many steps; what was opened is counted anew."""
        self.opened = 0
        for item, opened in self.task.feed(reader):
            self.opened += opened
            self.step(item)
            if len(self.reports) == stop_after:
                return self
        return self

    def step(self, item) -> None:
        task, step = self.task, len(self.reports) + 1
        before = task.slots
        assert torch.equal(before.is_busy, (before.data["labels"] != IGNORE_LABEL_ID).any(1)), "idle means unsupervised"
        self.taken += document_numbers(rows_of(before.data, before.is_busy & (before.steps == 0)))
        task.head.zero_grad(set_to_none=True)
        sums = task.train_step(item, step)
        task.observe(step, sums, 0.0)
        self.reports.append(task.train_report(fetched(sums, task.runtime), ROWS))
        is_done = before.is_busy & ~task.pending.is_busy
        self.retired += document_numbers(rows_of(before.data, is_done))
        self.steps_of_row.update(task.pending.steps[is_done].tolist())
        task.commit()


def rows_of(data, chosen):
    return {name: value[chosen] for name, value in data.items()}


@every_policy
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (1, 2), (2, 1)])
def test_every_row_is_taken_once_and_retired_once_an_epoch(policy, packing, ranks, micro_batches):
    def work(runtime):
        watch, reader = Watch(make_task(policy, runtime, micro_batches)), reader_of(runtime, packing=packing)
        for _ in range(2):
            watch.epoch(reader)
        return watch

    watches = on_ranks(ranks, work)
    for counts in ("taken", "retired"):
        found = sum((getattr(watch, counts) for watch in watches), Counter())
        assert found == dict.fromkeys(range(DOCUMENTS), 2), counts
    steps = sum((watch.steps_of_row for watch in watches), Counter())
    assert steps.total() == 2 * num_rows(packing) == watches[0].task.rows_retired
    assert max(steps) <= 3
    if policy == "fixed":
        assert set(steps) == {3}
    elif not packing:
        assert len(steps) > 1, "rows must differ in depth, or nothing is proven"


def test_learned_halting_follows_the_halting_head():
    task = make_task("learned")
    torch.nn.init.zeros_(task.head.model.inner.q_head.weight)
    for bias, expected in ((5.0, {1}), (-5.0, {3})):
        torch.nn.init.constant_(task.head.model.inner.q_head.bias, bias)
        task.slots = None
        assert set(Watch(task).epoch(reader_of(CPU)).steps_of_row) == expected
    torch.nn.init.constant_(task.head.model.inner.q_head.bias, 5.0)
    task = make_task("exploring", halt_exploration_prob=1.0)
    torch.nn.init.zeros_(task.head.model.inner.q_head.weight)
    torch.nn.init.constant_(task.head.model.inner.q_head.bias, 5.0)
    assert min(Watch(task).epoch(reader_of(CPU)).steps_of_row) >= 2, "who explores takes two steps at least"


def test_a_carried_row_thinks_on_where_it_stopped():
    """With a fixed depth the losses of a row after its k-th step are those of depth k in evaluation."""
    task = make_task("fixed")
    watch, items = Watch(task), task.feed(reader_of(CPU))
    item, _ = next(items)
    expected = []
    with torch.no_grad():
        sums, _ = TextTask.eval_batch(task, item[1], ())
    for depth in (1, 2, 3):
        expected.append((sums[f"depth_{depth}/token_loss"] / sums["tokens"]).item())
    for _ in range(3):
        watch.step(item)
    assert [report["token_loss"] for report in watch.reports] == pytest.approx(expected, rel=1e-5)


@every_policy
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_micro_batches_change_nothing(policy, reduction):
    found = []
    for micro_batches in (1, 2, 4):
        task = make_task(policy, micro_batches=micro_batches)
        task.reduction = reduction
        watch = Watch(task).epoch(reader_of(CPU), stop_after=7)
        found.append((watch.reports, gradients(task.head)))
    for reports, grads in found[1:]:
        for one, other in zip(reports, found[0][0], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        for name, grad in found[0][1].items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5)


@every_policy
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stop_after", [1, 6])
def test_a_resumed_epoch_goes_on_as_if_it_had_not_stopped(policy, ranks, stop_after):
    def whole(runtime):
        watch = Watch(make_task(policy, runtime)).epoch(reader_of(runtime, packing=False))
        return watch.reports, watch.taken

    def broken(runtime):
        first = Watch(make_task(policy, runtime)).epoch(reader_of(runtime, packing=False), stop_after)
        state, opened = of_the_first_rank(runtime, (through_a_file(first.task.state_dict()), first.opened))
        second = Watch(make_task(policy, runtime))
        second.task.load_state_dict(state)
        second.reports = list(first.reports)
        second.epoch(reader_of(runtime, start=(1, opened), packing=False))
        return second.reports, first.taken + second.taken

    expected, found = on_ranks(ranks, whole), on_ranks(ranks, broken)
    assert found == expected
    assert len(expected[0][0]) >= 8


def of_the_first_rank(runtime, value):
    """Only the first rank saves."""
    return value if runtime.world_size == 1 else runtime.meeting.exchange(runtime.rank, value)[0]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_state_of_other_ranks_is_refused():
    states = on_ranks(
        2, lambda runtime: Watch(make_task("fixed", runtime)).epoch(reader_of(runtime), 2).task.state_dict()
    )
    with pytest.raises(ValueError, match="arch.recursion=carry"):
        make_task("fixed").load_state_dict(states[0])


def test_progress_and_learning_rate_follow_the_rows_that_were_retired():
    task = make_task("sampled")
    watch = Watch(task)
    assert task.progress() == 0 and task.schedule_step(1) == 1.0
    watch.epoch(reader_of(CPU))
    assert task.progress() == 0.5 and task.schedule_step(7) == 50
    watch.epoch(reader_of(CPU))
    assert task.progress() == 1.0 and task.schedule_step(7) == 100


@pytest.mark.parametrize("poison", ["latents", "losses"])
def test_a_discarded_step_frees_the_poisoned_row_and_leaves_the_others_as_they_are(poison):
    tasks = [make_task("fixed", halt_max_steps=3) for _ in range(2)]
    fed = [iter(task.feed(reader_of(CPU))) for task in tasks]
    poisoned, freed = tasks

    def step(task, number):
        item, _ = next(fed[tasks.index(task)])
        task.module.zero_grad()
        return task.train_step(item, number)

    for task in tasks:
        step(task, 1)
        task.commit()
        step(task, 2)
    if poison == "latents":
        poisoned.pending.latents[0][1, 0, 0] = torch.nan
    else:
        poisoned.pending.losses[1, 0] = torch.inf
    assert (poisoned.discard(), freed.discard()) == (1, 0)
    assert poisoned.rows_retired == 1 and poisoned.slots.is_busy.tolist() == [True, False, True, True]
    freed.slots.is_busy[1], freed.rows_retired = False, 1.0
    for task in tasks:
        step(task, 3)
        task.commit()
    state, expected = poisoned.state_dict(), freed.state_dict()
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    of_freed = gradients(freed.head)
    for name, grad in gradients(poisoned.head).items():
        assert grad.isfinite().all() and torch.equal(grad, of_freed[name]), name


@every_policy
def test_slots_without_a_row_are_not_computed_and_change_no_number(policy):
    """Towards the end of an epoch, when the queue is empty."""
    found = []
    for runtime in (CPU, dataclasses.replace(CPU, use_compile=True)):  # a compiled step keeps its shape
        task = make_task(policy, runtime)
        core = task.head.model.inner
        with mock.patch.object(core, "embed", side_effect=core.embed) as embedded:
            watch = Watch(task).epoch(reader_of(CPU))
        computed = [len(call.args[0]["labels"]) for call in embedded.mock_calls]
        found.append((watch.reports, gradients(task.head), watch.steps_of_row, computed))
    (reports, grads, steps, computed), (all_reports, all_grads, all_steps, all_computed) = found
    assert steps == all_steps and sum(computed) < sum(all_computed) == ROWS * len(all_reports)
    for one, other in zip(reports, all_reports, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    for name, grad in all_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)


def test_ranks_share_a_batch_without_changing_its_update():
    def work(runtime):
        task = make_task("fixed", runtime)
        watch = Watch(task).epoch(reader_of(runtime), stop_after=4)
        grads = gradients(task.head)
        runtime.all_reduce_sum_(list(grads.values()))
        return watch.reports, grads

    (reports, grads), ((whole_reports, whole_grads),) = on_ranks(2, work)[0], on_ranks(1, work)
    for one, other in zip(reports, whole_reports, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, grad in whole_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5)
