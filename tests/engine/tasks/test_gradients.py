"""A pass that does not fit into memory: smaller passes, the same update, on every rank."""

from unittest import mock

import pytest
import torch

from engine.runtime.signals import CutShortError
from engine.tasks.gradients import tries
from engine.tasks.persistent_text import PersistentTextTask
from tests.engine.tasks.test_puzzles import make_item as puzzle_item
from tests.engine.tasks.test_puzzles import make_task as puzzle_task
from tests.engine.tasks.test_text import make_task
from tests.engine.text_samples import (
    CPU,
    ThreadRuntime,
    gradients,
    make_batch,
    make_head,
    make_reader,
    make_store,
    on_ranks,
)

ROWS = 8


def item_of(rank: int = 0, ranks: int = 1):
    batch = make_batch(30, packing=True)
    return "train", {name: value[:ROWS].chunk(ranks)[rank] for name, value in batch.items()}, ROWS


def found_by(task, item, runtime=CPU, said=None):
    said = [] if said is None else said
    for attempt in tries(task, item, 3, runtime, lambda: task.module.zero_grad(set_to_none=True), said.append):
        with attempt:
            sums = task.train_step(item, 3)
    return gradients(task.module), {name: value.tolist() for name, value in sums.items()}


def fails(task, at: str, times: int = 1, call: int = 2):
    """The device has no memory left in this call of the network or in the backward pass of it, so many times."""
    network, counts = task.head.model.inner.L_level, {"calls": 0, "left": times}
    honest = network.forward

    def maybe(*_):
        counts["calls"] += 1
        if counts["calls"] >= call and counts["left"]:
            counts["left"] -= 1
            raise torch.OutOfMemoryError("no memory")

    def forward(*args):
        out = honest(*args)
        if at == "forward":
            maybe()
        elif out.requires_grad:
            out.register_hook(maybe)
        return out

    return mock.patch.object(network, "forward", forward)


def assert_same(found, expected) -> None:
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(value, expected[0][name]) for name, value in found[0].items())


@pytest.mark.parametrize("at", ["forward", "backward"])
@pytest.mark.parametrize("passes", [1, 2])
def test_the_step_is_that_of_a_run_which_began_with_smaller_passes(passes, at):
    expected = found_by(make_task(micro_batches=2 * passes), item_of())
    task, said = make_task(micro_batches=passes), []
    with fails(task, at, call=9 * passes):
        found = found_by(task, item_of(), said=said)
    assert_same(found, expected)
    assert task.micro_batches == 2 * passes and len(said) == 1 and "tokens_per_pass" in said[0]


def test_what_was_sent_ahead_is_split_anew():
    task = make_task()
    item = item_of()
    task.prepare(item)
    with fails(task, "forward"):
        assert_same(found_by(task, item), found_by(make_task(micro_batches=2), item))


def test_text_with_persistent_state_repeats_its_step_from_the_same_state():
    def task_of(passes):
        head = make_head(recursion="carry", grad_cycles="last_cycle", supervise="step")
        return PersistentTextTask(head, CPU, seed=5, total_steps=10, total_rows=20, micro_batches=passes)

    found, reader = [], list(make_reader(make_store(40), 4))
    for task, times in ((task_of(1), 1), (task_of(2), 0)):
        steps = task.feed(iter(reader))
        with fails(task, "forward", times):
            found.append([found_by(task, next(steps)[0])])
            task.commit()
            found[-1].append(found_by(task, next(steps)[0]))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("passes", [1, ROWS])
def test_what_still_does_not_fit_says_what_to_set(passes):
    task = make_task(micro_batches=passes)
    with fails(task, "forward", times=99), pytest.raises(ValueError, match="tokens_per_pass"):
        found_by(task, item_of())
    assert not gradients(task.module) and task.micro_batches == (2 if passes == 1 else ROWS)


def test_puzzles_whose_state_is_split_already_say_what_to_set():
    task = puzzle_task()
    with fails(task, "forward"), pytest.raises(ValueError, match="gradient_accumulation_steps"):
        found_by(task, puzzle_item(1))


def test_all_ranks_take_smaller_passes_when_one_has_no_memory():
    def work(runtime):
        task = make_task(runtime=runtime)
        with fails(task, "forward", times=runtime.rank):
            return task, found_by(task, item_of(runtime.rank, 2), runtime)

    def expected(runtime):
        return found_by(make_task(runtime=runtime, micro_batches=2), item_of(runtime.rank, 2), runtime)

    for (task, found), wanted in zip(on_ranks(2, work), on_ranks(2, expected), strict=True):
        assert task.micro_batches == 2
        assert_same(found, wanted)


def test_ranks_still_meet_when_one_has_no_memory_for_its_rows():
    failed = []

    def send(self, data):
        if self.rank and not failed:
            failed.append(self.rank)
            raise torch.OutOfMemoryError("no memory")
        return data

    def work(runtime, passes=1):
        return found_by(make_task(runtime=runtime, micro_batches=passes), item_of(runtime.rank, 2), runtime)

    with mock.patch.object(ThreadRuntime, "to_device", send):
        found = on_ranks(2, work)
    assert failed == [1]
    for one, wanted in zip(found, on_ranks(2, lambda runtime: work(runtime, 2)), strict=True):
        assert_same(one, wanted)


def test_a_rank_that_is_stopped_wins_over_one_without_memory():
    def work(runtime):
        task = make_task(runtime=runtime)
        if runtime.rank:
            task.stop = mock.Mock(requested=True)
        with fails(task, "forward", times=1 - runtime.rank), pytest.raises(CutShortError):
            found_by(task, item_of(runtime.rank, 2), runtime)
        return task.micro_batches, gradients(task.module)

    assert on_ranks(2, work) == [(1, {})] * 2
