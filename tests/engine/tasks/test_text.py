"""Training on text: splitting a batch changes nothing, depth follows its law, and an epoch shows every document once."""

import dataclasses
import itertools
import math
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.common import IGNORE_LABEL_ID
from engine.tasks.protocol import add_sums, fetched
from engine.tasks.text import TextTask, sampled_depth, text_report
from models.config import ArchConfig
from models.losses.text import TextLossHead
from tests.engine.text_samples import (
    CPU,
    VOCAB,
    document_numbers,
    gradients,
    make_batch,
    make_head,
    make_reader,
    make_store,
    on_ranks,
)

DOCUMENTS = 20


def make_task(head=None, runtime=CPU, **options) -> TextTask:
    return TextTask(head or make_head(), runtime, seed=5, **({"total_steps": 10} | options))


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("piece_bytes", [None, torch.ones(VOCAB, dtype=torch.long)])
def test_the_numbers_of_an_evaluation_are_known_before_it(num_steps, piece_bytes):
    task = make_task(make_head(halt_max_steps=num_steps), piece_bytes=piece_bytes)
    totals = {}
    add_sums(totals, task.eval_batch(make_batch(DOCUMENTS, packing=True), ())[0])
    found = task.eval_report(fetched(totals, CPU))
    assert found.keys() <= set(task.eval_metrics()) <= {*found, "q_halt_auc"}


def test_an_evaluation_may_go_deeper_than_training():
    head, batch = make_head(halt_max_steps=2), make_batch(DOCUMENTS, packing=True)

    def report(**options):
        task = make_task(head, **options)
        totals = {}
        add_sums(totals, task.eval_batch(batch, ())[0])
        return task.eval_report(fetched(totals, CPU))

    usual, deeper = report(), report(eval_steps=4)
    assert usual["depth_2/token_loss"] == deeper["depth_2/token_loss"]
    assert "depth_4/token_loss" in deeper.keys() - usual.keys()
    assert deeper["token_loss"] == deeper["depth_4/token_loss"] != usual["token_loss"]
    assert deeper["steps"] == 4


def one_step(ranks=1, micro_batches=1, reduction="token", packing=True, step=1, **options):
    """Gradients summed over ranks and the report of one step on the same 8 rows, however they are split."""

    def work(runtime):
        reader = make_reader(
            make_store(DOCUMENTS), 8, packing=packing, rank=runtime.rank, world_size=runtime.world_size
        )
        head = make_head(**options)
        task = make_task(head, runtime, micro_batches=micro_batches, reduction=reduction)
        sums = task.train_step(next(iter(reader)), step)
        grads = gradients(head)
        runtime.all_reduce_sum_(list(grads.values()))
        return grads, task.train_report(fetched(sums, runtime), 8)

    return on_ranks(ranks, work)[0]


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (4, 1)])
def test_splitting_a_batch_changes_nothing(ranks, micro_batches, reduction):
    options = {"reduction": reduction, "halt_policy": "sampled", "halt_mean_steps": 2}
    grads, report = one_step(ranks, micro_batches, **options)
    whole_grads, whole_report = one_step(**options)
    assert report == pytest.approx(whole_report, rel=1e-5)
    assert grads.keys() == whole_grads.keys()
    for name, grad in whole_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
    assert whole_report["count"] > 8 and max(grad.abs().max() for grad in whole_grads.values()) > 1e-2


def test_reductions_weigh_documents_differently():
    token, sequence = (one_step(reduction=reduction)[0] for reduction in ("token", "sequence"))
    name = "model.inner.lm_head.weight"
    assert not torch.allclose(token[name], sequence[name], rtol=1e-2)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_batch_without_labels_leaves_zero_gradients_and_a_finite_report(reduction):
    head = make_head()
    batch = make_batch(6, packing=True)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_LABEL_ID)
    task = make_task(head, reduction=reduction)
    report = task.train_report(fetched(task.train_step(("train", batch, 2), 1), CPU), 2)
    assert report["token_loss"] == report["lm_loss"] == report["count"] == 0 and report["perplexity"] == 1
    assert all(math.isfinite(value) for value in report.values())
    assert all(not grad.any() for grad in gradients(head).values())


def test_a_rank_without_labels_does_not_disturb_the_others():
    def work(runtime, alone=False):
        batch = make_batch(6, packing=True)
        if runtime.rank == 1:
            batch["labels"] = torch.full_like(batch["labels"], IGNORE_LABEL_ID)
        head = make_head()
        make_task(head, runtime).train_step(("train", batch, 2), 1)
        grads = gradients(head)
        runtime.all_reduce_sum_(list(grads.values()))
        return grads

    together, (alone,) = on_ranks(2, work)[0], on_ranks(1, work)
    for name, grad in alone.items():
        torch.testing.assert_close(together[name], grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("policy", ["sampled", "fixed"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_document_is_trained_on_once_an_epoch(policy, packing, ranks):
    def work(runtime):
        seen: Counter[int] = Counter()
        honest = TextLossHead.train_on

        def watched(head, batch, *rest):
            seen.update(document_numbers(batch))
            return honest(head, batch, *rest)

        options = {"packing": packing, "rank": runtime.rank, "world_size": runtime.world_size}
        reader = make_reader(make_store(DOCUMENTS), 4, **options)
        task = make_task(make_head(halt_policy=policy, halt_mean_steps=2), runtime, micro_batches=2)
        with mock.patch.object(task.head, "train_on", lambda *given: watched(task.head, *given)):
            for _ in range(2):
                for step, (item, opened) in enumerate(task.feed(reader), start=1):
                    assert opened == 1
                    task.train_step(item, step)
                    task.commit()
        return seen

    assert sum(on_ranks(ranks, work), Counter()) == dict.fromkeys(range(DOCUMENTS), 2), "two epochs"


def config(**options) -> ArchConfig:
    sizes = {"seq_len": 4, "vocab_size": 8, "hidden_size": 8, "num_heads": 1, "H_cycles": 1, "L_cycles": 1}
    return ArchConfig.model_validate(sizes | {"halt_policy": "sampled", "halt_max_steps": 12} | options)


@pytest.mark.parametrize("mean", [1.5, 3, 4])
def test_sampled_depth_has_the_mean_that_was_asked_for_and_reaches_the_deepest(mean):
    drawn = [sampled_depth(config(halt_mean_steps=mean), 12, seed) for seed in range(5000)]
    assert min(drawn) == 1
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.05)
    assert max(drawn) == 12 or mean < 2
    assert len(set(drawn)) >= 6


def test_sampled_depth_never_passes_what_is_allowed_at_the_moment():
    drawn = Counter(sampled_depth(config(halt_mean_steps=4), 5, seed) for seed in range(3000))
    assert set(drawn) == {1, 2, 3, 4, 5} and drawn[5] > 500, "what lies beyond falls on the deepest"
    assert sampled_depth(config(), 1, 0) == 1
    assert {sampled_depth(config(halt_policy="fixed"), 12, seed) for seed in range(50)} == {12}


def test_all_ranks_and_runs_draw_the_same_depth_and_steps_differ():
    def work(runtime):
        task = make_task(make_head(halt_max_steps=8, halt_policy="sampled", halt_mean_steps=4), runtime)
        batch = make_batch(4, packing=True)
        return [int(task.train_step(("train", batch, 1), step)["steps"] / 4) for step in range(1, 13)]

    first, second = on_ranks(2, work)
    assert first == second == on_ranks(1, work)[0]
    assert len(set(first)) > 3


def test_the_curriculum_and_the_warm_up_act():
    stages = [{"until": 0.45, "H_cycles": 1, "halt_max_steps": 1}]
    task = make_task(make_head(depth_curriculum=stages, grad_cycles="1->all"), total_steps=10)
    core, batch, depths = task.head.model.inner, make_batch(4, packing=True), []
    for step in range(1, 11):
        steps = int(task.train_step(("train", batch, 1), step)["steps"] / 4)
        depths.append((core.depth.H_cycles, core.calls_with_grad(), steps))
    assert depths == [
        *[(1, 2, 1)] * 4,
        *[(2, 4, 3)] * 6,
    ]
    core_calls = []
    task = make_task(make_head(grad_cycles="1->all"), total_steps=10)
    for step in range(1, 11):
        task.train_step(("train", batch, 1), step)
        core_calls.append(task.head.model.inner.calls_with_grad())
    assert core_calls[0] < core_calls[2] <= core_calls[4] == core_calls[-1] == 4
    task.head.model.inner.depth = task.head.model.config.depth_at(0.0)
    sums, _ = task.eval_batch(batch, ())
    assert sums["steps"] == 3 * 4, "evaluation is always at full depth"


def test_evaluation_does_not_depend_on_batches_and_returns_what_is_asked():
    task = make_task(piece_bytes=torch.arange(40))
    reports = []
    for rows in (3, 8):
        totals: dict[str, torch.Tensor] = {}
        for _, batch, _ in make_reader(make_store(DOCUMENTS), rows, is_test=True):
            sums, outputs = task.eval_batch(batch, {"preds", "labels"})
            is_supervised = batch["labels"] != IGNORE_LABEL_ID
            assert torch.equal(outputs["preds"] != IGNORE_LABEL_ID, is_supervised)
            right = (outputs["preds"] == outputs["labels"]) & is_supervised
            assert right.sum() == sums["token_accuracy"]
            assert sums["bytes"] == batch["labels"][is_supervised].sum(), "token i stands for i bytes here"
            for name, value in sums.items():
                totals[name] = totals.get(name, 0) + value.double()
        reports.append(task.eval_report(fetched(totals, CPU)))
    assert reports[0] == pytest.approx(reports[1], rel=1e-5) and reports[0]["count"] == DOCUMENTS
    with pytest.raises(ValueError, match="logits"):
        task.eval_batch(make_batch(4, packing=True), {"logits"})


def test_the_report_says_means_over_documents_and_over_tokens():
    sums = {
        **{"count": 4.0, "tokens": 20.0, "accuracy": 3.0, "exact_accuracy": 1.0, "token_accuracy": 15.0},
        **{"lm_loss": 2.0, "token_loss": 10.0, "steps": 12.0, "bytes": 80.0, "depth_1/token_loss": 30.0},
        **{"q_halt_count": 40.0, "q_halt_loss": 20.0, "q_halt_accuracy": 30.0},
        **{"q_halt_wanted": [0.0, 4.0], "q_halt_unwanted": [2.0, 2.0]},
    }
    assert text_report(sums) == pytest.approx(
        {
            **{"accuracy": 0.75, "exact_accuracy": 0.25, "lm_loss": 0.5, "steps": 3.0, "token_accuracy": 0.75},
            **{"token_loss": 0.5, "depth_1/token_loss": 1.5, "perplexity": math.exp(0.5)},
            **{"bits_per_byte": 10 / math.log(2) / 80, "q_halt_loss": 0.5, "q_halt_accuracy": 0.75},
            **{"q_halt_auc": 0.75, "count": 4.0, "tokens": 20.0},
        }
    )
    assert text_report(sums | {"token_loss": 1e9})["perplexity"] < math.inf
    assert "q_halt_auc" not in text_report(sums | {"q_halt_unwanted": [0.0, 0.0]}), "with one kind there is no curve"


def test_a_state_with_a_carry_is_refused():
    assert make_task().state_dict() == {}
    make_task().load_state_dict({})
    with pytest.raises(ValueError, match="arch.recursion=carry"):
        make_task().load_state_dict({"slots": {}})


def test_training_learns_an_answer():
    """A few steps on one batch bring the loss down, at every depth."""
    head = make_head(hidden_size=32)
    task = make_task(head)
    batch = make_batch(6, packing=True)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for step in itertools.chain(range(1, 41)):
        report = task.train_report(fetched(task.train_step(("train", batch, 2), step), CPU), 2)
        losses.append(report["token_loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.3 * losses[0]


COMPILED = dataclasses.replace(CPU, use_compile=True)  # computes every row, because a compiled step keeps its shape


def batch_with_empty_rows(seed: int, empty: int):
    """As at the end of an epoch; the empty rows stand between the others."""
    batch = make_batch(DOCUMENTS, packing=True, seed=seed)
    rows = len(batch["labels"])
    blank = {name: torch.zeros_like(value[:1]).expand(empty, -1) for name, value in batch.items()}
    blank["labels"] = torch.full_like(blank["labels"], IGNORE_LABEL_ID)
    order = torch.randperm(rows + empty, generator=torch.Generator().manual_seed(seed))
    return {name: torch.cat((value, blank[name]))[order] for name, value in batch.items()}, rows


@given(seed=st.integers(0, 99), empty=st.integers(0, 20), micro_batches=st.sampled_from([1, 2, 4]))
@settings(max_examples=10, deadline=None)
def test_empty_rows_are_not_computed_and_change_no_number(seed, empty, micro_batches):
    batch, _ = batch_with_empty_rows(seed, empty)
    batch = {name: value[: len(value) // 4 * 4] for name, value in batch.items()}
    found = []
    for runtime in (CPU, COMPILED):
        task = make_task(runtime=runtime, micro_batches=micro_batches)
        core = task.head.model.inner
        with mock.patch.object(core, "embed", side_effect=core.embed) as embedded:
            sums = task.train_step(("train", batch, 0), 1)
            scored, outputs = task.eval_batch(batch, {"preds", "labels"})
        numbers = [task.train_report(fetched(s, CPU), 1) for s in (sums, scored)]
        found.append(
            (numbers, gradients(task.head), outputs, sum(len(call.args[0]["labels"]) for call in embedded.mock_calls))
        )
    (numbers, grads, outputs, computed), (all_numbers, all_grads, all_outputs, all_computed) = found
    for one, other in zip(numbers, all_numbers, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    for name, grad in all_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(outputs[name], all_outputs[name]) for name in outputs)
    real = int((batch["labels"] != IGNORE_LABEL_ID).any(1).sum())
    assert 2 * real <= computed <= 2 * real + 1 and computed <= all_computed


def test_a_rank_without_a_row_has_gradients_to_sum_all_the_same():
    batch, _ = batch_with_empty_rows(0, 2)
    empty = {name: value[(batch["labels"] == IGNORE_LABEL_ID).all(1)] for name, value in batch.items()}
    task = make_task()
    task.train_step(("train", empty, 0), 1)
    assert gradients(task.head).keys() == one_step()[0].keys()
    assert not any(grad.any() for grad in gradients(task.head).values())
