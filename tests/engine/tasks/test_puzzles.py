"""The task of puzzles: rows are slots with a carry of their own, whatever rank or micro-batch holds them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.common import IGNORE_LABEL_ID, hash_seed
from engine.config.registry import load_model_class
from engine.runtime.devices import Runtime
from engine.tasks.protocol import add_sums, split_rows
from engine.tasks.puzzles import PuzzleTask, merge_carries
from models.losses.puzzles import ACTLossHead
from tests.tiny import ARCH, CPU, TRM

ROWS, LENGTH, VOCAB = 8, 6, 7


class OneOfRanks(Runtime):
    """A rank whose collectives are not needed."""

    def all_gather_rows(self, tensor):
        return tensor


def rank(number: int, ranks: int) -> Runtime:
    return OneOfRanks(device=CPU.device, rank=number, world_size=ranks, use_compile=False)


def make_task(runtime=CPU, micro_batches=1, seed=0, **options) -> PuzzleTask:
    torch.manual_seed(3)
    arch = ARCH | {"seq_len": LENGTH, "vocab_size": VOCAB, "num_puzzle_identifiers": 4} | options
    head = ACTLossHead(load_model_class(TRM)(arch))
    torch.nn.init.constant_(head.model.inner.q_head.bias, 5.0)  # rows want to halt
    return PuzzleTask(head, runtime, seed=seed, micro_batches=micro_batches)


def make_item(seed: int, rows: slice = slice(None)):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.int32}
    batch = {
        "inputs": torch.randint(0, VOCAB, (ROWS, LENGTH), **draw),
        "labels": torch.randint(0, VOCAB, (ROWS, LENGTH), **draw),
        "puzzle_identifiers": torch.randint(0, 4, (ROWS,), **draw),
    }
    return "all", {name: value[rows] for name, value in batch.items()}, ROWS


def train(task, steps: int, rows: slice = slice(None), first: int = 1):
    for step in range(first, first + steps):
        task.train_step(make_item(step, rows), step)
        task.commit()
    return merge_carries(task.carries)


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize(("ranks", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 8)])
def test_exploration_depends_on_the_slot_and_not_on_the_split(ranks, parts, chains):
    options = {"halt_exploration_prob": 0.5, "halt_max_steps": 4, "chains": chains}
    whole = train(make_task(**options), 5)
    assert len(set(whole.steps.tolist())) > 1, "some rows must explore and others not"
    own = ROWS // ranks
    held = [train(make_task(rank(r, ranks), parts, **options), 5, slice(r * own, (r + 1) * own)) for r in range(ranks)]
    assert torch.equal(torch.cat([carry.steps for carry in held]), whole.steps)
    assert torch.equal(torch.cat([carry.halted for carry in held]), whole.halted)
    for name, value in whole.current_data.items():
        assert torch.equal(torch.cat([carry.current_data[name] for carry in held]), value)
    for name, value in whole.inner_carry._asdict().items():
        split = torch.cat([getattr(carry.inner_carry, name) for carry in held])
        torch.testing.assert_close(split, value, rtol=0, atol=1e-5)


def test_exploration_depends_on_step_and_seed():
    options = {"halt_exploration_prob": 0.5, "halt_max_steps": 9}
    of_seed = [train(make_task(seed=seed, **options), 3).steps.tolist() for seed in (0, 0, 1)]
    assert of_seed[0] == of_seed[1] != of_seed[2]
    of_step = [train(make_task(**options), 1, first=step).halted.tolist() for step in (1, 2, 3)]
    assert of_step[0] != of_step[1] != of_step[2], "or the same rows would explore all the time"
    numbers = {hash_seed(seed, step) for seed in range(50) for step in range(50)}
    assert len(numbers) == 2500 and all(0 <= number < 2**63 for number in numbers)


def test_torch_randomness_is_left_alone():
    """Loader workers take their seeds from it, so a step that drew from it would shuffle data by its split."""
    before = torch.get_rng_state()
    task = make_task(halt_exploration_prob=0.5)
    torch.set_rng_state(before)
    train(task, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("parts", "chains"), [(1, 1), (2, 1), (2, 3)])
def test_a_discarded_step_frees_the_poisoned_row_and_leaves_the_others_as_they_are(parts, chains):
    options = {"halt_max_steps": 9, "halt_exploration_prob": 0.5, "chains": chains}
    tasks = [make_task(micro_batches=parts, **options) for _ in range(2)]
    for task in tasks:
        assert not train(task, 2).halted.all()
    poisoned, freed = tasks
    busy = int((~merge_carries(freed.carries).halted).nonzero()[0])
    index, row = divmod(busy, ROWS // parts)
    poisoned.carries[index].inner_carry.z_H[row, 0, 0] = torch.nan

    sums = poisoned.train_step(make_item(3), 3)
    assert not sums["lm_loss"].isfinite() and poisoned.discard() == 1
    freed.train_step(make_item(3), 3)
    assert freed.discard() == 0
    freed.carries[index].halted[row] = True
    for task in tasks:
        task.module.zero_grad()
        task.train_step(make_item(4), 4)
        task.commit()
    torch.testing.assert_close(poisoned.state_dict(), freed.state_dict(), rtol=0, atol=0)
    of_freed = dict(freed.module.named_parameters())
    for name, parameter in poisoned.module.named_parameters():
        assert parameter.grad.isfinite().all() and torch.equal(parameter.grad, of_freed[name].grad), name


@pytest.mark.parametrize("chains", [1, 3])
def test_the_gradient_is_that_of_the_mean_over_the_global_batch(chains):
    whole, rank_one = make_task(chains=chains), make_task(rank(1, 2), chains=chains)
    task = make_task(rank(0, 2), chains=chains)
    for each, rows in ((whole, slice(None)), (task, slice(0, 4)), (rank_one, slice(4, 8))):
        each.train_step(make_item(1, rows), 1)
    for name, parameter in whole.module.named_parameters():
        halves = [dict(t.module.named_parameters())[name].grad for t in (task, rank_one)]
        torch.testing.assert_close(halves[0] + halves[1], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (1, 4), (2, 2)])
def test_the_carry_survives_a_save_also_on_another_split(ranks, parts, chains):
    options = {"halt_exploration_prob": 0.5, "halt_max_steps": 4, "chains": chains}
    source = make_task(**options)
    train(source, 3)
    state = source.state_dict()
    own = ROWS // ranks
    for number in range(ranks):
        rows = slice(number * own, (number + 1) * own)
        target = make_task(rank(number, ranks), parts, **options)
        target.load_state_dict(state)
        assert len(target.carries) == parts
        carry = merge_carries(target.carries)
        assert torch.equal(carry.steps, state["steps"][rows]) and carry.steps.dtype == torch.int32
        assert carry.halted.dtype == torch.bool and torch.equal(carry.halted, state["halted"][rows].bool())
        for name, value in carry.current_data.items():
            assert torch.equal(value, state["current_data"][name][rows])
        for name, value in carry.inner_carry._asdict().items():
            assert torch.equal(value, state["latents"][name][rows])
        train(target, 1, rows, first=4)
    fresh = make_task(**options)
    fresh.load_state_dict({})
    assert fresh.carries is None


def test_a_carry_that_the_ranks_cannot_share_is_refused():
    source = make_task()
    train(source, 1)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        make_task(rank(0, 3)).load_state_dict(source.state_dict())


def test_evaluation_runs_every_row_to_the_last_step_from_a_fresh_start():
    task = make_task(halt_max_steps=3)
    train(task, 2)
    carry = task.carries[0]
    with torch.no_grad():
        first, outputs = task.eval_batch(make_item(9)[1], {"preds", "labels"})
        second, _ = task.eval_batch(make_item(9)[1], ())
    assert first["steps"] == 3 * ROWS and first["count"] == ROWS
    assert {name: value.item() for name, value in first.items()} == {n: v.item() for n, v in second.items()}
    assert outputs.keys() == {"preds", "labels"} and outputs["preds"].shape == (ROWS, LENGTH)
    assert task.carries[0] is carry, "training goes on where it stood"


def test_reports_divide_by_what_they_should():
    task = make_task()
    sums = {"count": 4.0, "accuracy": 3.0, "steps": 10.0, "lm_loss": 16.0, "q_halt_loss": 4.0}
    assert task.train_report(sums, 8) == {
        **{"accuracy": 0.75, "count": 4.0, "lm_loss": 2.0, "q_halt_loss": 0.5, "steps": 2.5}
    }
    assert task.eval_report(sums) == {"accuracy": 0.75, "lm_loss": 4.0, "q_halt_loss": 1.0, "steps": 2.5}
    idle = task.train_report(dict.fromkeys(sums, 0.0), 8)
    assert set(idle.values()) == {0.0}, "no row ended: no division by zero"


def test_rows_without_labels_do_not_spoil_the_step():
    name, batch, size = make_item(1)
    task = make_task()
    sums = task.train_step((name, batch | {"labels": torch.full_like(batch["labels"], IGNORE_LABEL_ID)}, size), 1)
    assert sums["count"] == 0 and sums["lm_loss"] == 0
    assert all(torch.isfinite(p.grad).all() for p in task.module.parameters() if p.grad is not None)


@given(rows=st.integers(1, 5), parts=st.integers(1, 5), length=st.integers(0, 3))
def test_split_rows_keeps_every_row_in_order(rows, parts, length):
    batch = {
        "inputs": torch.arange(rows * parts * length).view(rows * parts, length),
        "puzzle_identifiers": torch.arange(rows * parts),
    }
    chunks = split_rows(batch, parts)
    assert len(chunks) == parts and all(len(chunk["inputs"]) == rows for chunk in chunks)
    for name, value in batch.items():
        assert torch.equal(torch.cat([chunk[name] for chunk in chunks]), value)


def test_sums_are_added_in_float64_and_let_go_of_the_graph():
    totals: dict[str, torch.Tensor] = {}
    add_sums(totals, {"lm_loss": torch.tensor(2.0**24, requires_grad=True)})
    add_sums(totals, {"lm_loss": torch.tensor(1.0), "count": torch.tensor(3)})
    assert totals["lm_loss"].item() == 2**24 + 1 and totals["count"].item() == 3
    assert not totals["lm_loss"].requires_grad
