"""The loss head of text: what a step costs does not depend on packing, and the halting head learns what was measured."""

import math

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from models.calls import NetworkCalls
from models.losses.puzzles import softmax_cross_entropy
from models.losses.text import HaltingTargets, Supervision, area_under_roc
from tests.engine.text_samples import ARCHS, VOCAB, gradients, make_batch, make_head

STEPS = 3
ONE = torch.ones(())
every_arch = pytest.mark.parametrize("arch", ARCHS)


def trained(head, batch, reduction="token", steps=STEPS):
    """Sums and gradients of one optimizer step."""
    at = Supervision.of(batch)
    total = torch.tensor(float(max(1, len(at.places) if reduction == "token" else len(at.lengths))))
    head.zero_grad(set_to_none=True)
    return head.train_on(batch, at, at.weights(reduction, total), steps), gradients(head)


def assert_alike(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]).float(),
            torch.as_tensor(value).float(),
            rtol=1e-5,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_supervision_counts_the_documents_of_every_row():
    ignored = IGNORE_LABEL_ID
    batch = {
        "labels": torch.tensor([[ignored, 5, 6, ignored, 7], [ignored] * 5, [3, ignored, ignored, 4, 4]]),
        "documents": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, -1, -1], [0, 0, 1, 1, 1]]),
    }
    at = Supervision.of(batch)
    assert at.places.tolist() == [1, 2, 4, 10, 13, 14] and at.labels.tolist() == [5, 6, 7, 3, 4, 4]
    assert at.lengths.tolist() == [2, 1, 1, 2] and at.document.tolist() == [0, 0, 1, 2, 3, 3]
    assert at.per_document(torch.arange(6.0)).tolist() == [1, 2, 3, 9]
    assert at.weights("token", torch.tensor(6.0)).tolist() == pytest.approx([1 / 6] * 6)
    assert at.weights("sequence", torch.tensor(4.0)).tolist() == [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 8, 1 / 8]


@every_arch
@pytest.mark.parametrize(
    ("options", "reduction"),
    [
        ({}, "token"),
        ({"pos_encodings": "learned", "norm": "post", "supervise": "step"}, "sequence"),
        ({"prefix_mask": True, "latent_init": "embedding", "detach_between_steps": False}, "token"),
        ({"injection": "start"}, "token"),
    ],
)
def test_packing_changes_neither_loss_nor_metrics_nor_gradients(arch, options, reduction):
    head = make_head(arch, **options)
    packed, plain = make_batch(12, packing=True), make_batch(12, packing=False)
    assert len(packed["inputs"]) < len(plain["inputs"]) == 12
    (sums, grads), (plain_sums, plain_grads) = (trained(head, batch, reduction) for batch in (packed, plain))
    assert sums["count"] == 12 and sums["q_halt_count"] == (STEPS - 1) * sums["tokens"]
    assert_alike(sums, plain_sums, atol=1e-4)  # sums over some 40 tokens
    assert_alike(grads, plain_grads)
    assert max(grad.abs().max() for grad in grads.values()) > 1e-2


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("supervise", ["step", "cycle"])
def test_the_loss_is_the_mean_over_steps_and_supervised_cycles(detach, supervise):
    """Against the same sum written plainly: one graph, one backward."""
    head = make_head(detach_between_steps=detach, supervise=supervise)
    batch = make_batch(8, packing=True)
    _, found = trained(head, batch)
    core, labels = head.model.inner, batch["labels"]
    head.zero_grad(set_to_none=True)
    x, context = core.embed(batch), core.context(batch)
    z, total = core.initial_latents(x), torch.zeros(())
    for _ in range(STEPS):
        z, answers = core.step(type(z)(*(s.detach() for s in z)) if detach else z, x, context)
        assert len(answers) == (2 if supervise == "cycle" else 1)
        for answer in answers:
            loss = softmax_cross_entropy(core.lm_head(core.hidden(answer)), labels).sum()
            total = total + loss / (labels != IGNORE_LABEL_ID).sum() / len(answers) / STEPS
    total.backward()
    expected = gradients(head)
    for name in ("q_head.weight", "q_head.bias"):  # which this plain sum leaves out
        found.pop(f"model.inner.{name}")
    assert_alike(found, expected)


@pytest.mark.parametrize("calls", ["all", "half", 5])
@every_arch
def test_a_loss_after_the_last_step_reaches_back_as_many_calls_as_asked(arch, calls):
    """Against the same recursion written plainly: calls of earlier steps without gradient, one loss."""
    head, batch = (
        make_head(arch, supervise="last", detach_between_steps=False, grad_cycles=calls),
        make_batch(8, packing=True),
    )
    _, found = trained(head, batch)
    core, labels = head.model.inner, batch["labels"]
    total = STEPS * core.calls_per_step()
    with_grad = {"all": total, "half": (total + 1) // 2}.get(calls, calls)
    head.zero_grad(set_to_none=True)
    x, context = core.embed(batch), core.context(batch)
    z, made = core.initial_latents(x), 0

    class Plain(NetworkCalls):
        def __call__(self, level, state):
            nonlocal made
            made += 1
            with torch.set_grad_enabled(made > total - with_grad):
                return level(state, self.context)

    for _ in range(STEPS):
        call = Plain(context, 0, 0)
        z = core.recurse(z, x, call)
    logits = core.lm_head(core.hidden(getattr(z, core.answer)))
    (softmax_cross_entropy(logits, labels).sum() / (labels != IGNORE_LABEL_ID).sum()).backward()
    expected = gradients(head)
    for name in ("q_head.weight", "q_head.bias"):  # which learns at every step, and is left out here
        assert found.pop(f"model.inner.{name}").abs().sum() > 0
    assert_alike(found, expected)


def test_detached_steps_send_no_gradient_back_and_others_do():
    batch = make_batch(8, packing=True)
    both = [trained(make_head(detach_between_steps=detach), batch)[1] for detach in (True, False)]
    name = "model.inner.L_level.layers.0.mlp.down_proj.weight"
    assert not torch.allclose(both[0][name], both[1][name], rtol=1e-3)
    shallow = [trained(make_head(detach_between_steps=detach), batch, steps=1)[1] for detach in (True, False)]
    assert_alike(shallow[0], shallow[1], atol=1e-7)


def test_gradient_flows_through_as_many_calls_as_asked():
    batch, name = make_batch(8, packing=True), "model.inner.L_level.layers.0.mlp.down_proj.weight"
    found = [trained(make_head(grad_cycles=calls, supervise="step"), batch)[1][name] for calls in (1, 2, 4, "all")]
    assert torch.equal(found[2], found[3]), "a step of H2 L1 has four calls"
    assert not torch.allclose(found[0], found[1], rtol=1e-3) and not torch.allclose(found[1], found[2], rtol=1e-3)


@every_arch
def test_the_halting_head_never_moves_the_trunk(arch):
    batch = make_batch(8, packing=True)
    head = make_head(arch)
    _, before = trained(head, batch)
    with torch.no_grad():
        head.model.inner.q_head.weight.mul_(50)
    _, after = trained(head, batch)
    q_names = {"model.inner.q_head.weight", "model.inner.q_head.bias"}
    assert all(before[name].abs().sum() > 0 for name in q_names)
    assert not torch.equal(before["model.inner.q_head.weight"], after["model.inner.q_head.weight"])
    for name in before.keys() - q_names:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("delta", [0.0, 0.005])
def test_the_halting_target_is_what_any_later_step_brought(delta, detach):
    steps = STEPS + 2
    head, batch = make_head(halt_delta=delta, detach_between_steps=detach), make_batch(12, packing=True)
    at = Supervision.of(batch)
    losses, logits = zip(*((scores.losses, q) for scores, q in head.depths(batch, at, steps)), strict=True)
    right = wanted = loss = not_of_the_next = 0.0
    for step in range(steps - 1):
        for token, (old, q) in enumerate(zip(losses[step].tolist(), logits[step].tolist(), strict=True)):
            may_halt = all(old - losses[later][token].item() <= delta for later in range(step + 1, steps))
            not_of_the_next += may_halt != (old - losses[step + 1][token].item() <= delta)
            wanted += may_halt
            right += (q >= 0) == may_halt
            loss += math.log1p(math.exp(-q if may_halt else q))
    assert not_of_the_next and 0 < wanted < (steps - 1) * len(at.places)
    for sums in (head.evaluate_on(batch, at, steps)[0], trained(head, batch, steps=steps)[0]):
        assert sums["q_halt_count"] == (steps - 1) * len(at.places)
        assert sums["q_halt_accuracy"] == right and sums["q_halt_wanted"].sum() == wanted
        assert sums["q_halt_unwanted"].sum() == sums["q_halt_count"] - wanted
        assert sums["q_halt_loss"].item() == pytest.approx(loss, rel=1e-5)


def test_an_answer_that_comes_after_idle_steps_is_waited_for():
    """Three tokens over four steps: one at chance until the last, one right from the second on, one never better."""
    losses = torch.tensor([[3.0, 3.0, 3.0, 0.1], [3.0, 0.1, 0.1, 0.1], [3.0, 3.0, 3.0, 3.0]]).T
    halting, sure = HaltingTargets(0.01), torch.full((3,), 20.0)
    for step in losses:
        halting.add_step(sure, step)
    halting.loss(torch.ones(3))
    assert halting.totals["q_halt_wanted"].sum() == 0 + 2 + 3 and halting.totals["q_halt_count"] == 9


def test_gradient_of_the_halting_head_is_the_same_with_and_without_detached_steps():
    batch, name = make_batch(8, packing=True), "model.inner.q_head.weight"
    both = [trained(make_head(detach_between_steps=detach), batch)[1][name] for detach in (True, False)]
    assert both[0].abs().sum() > 0
    torch.testing.assert_close(both[0], both[1], atol=1e-6, rtol=0)


def test_a_lasting_carry_makes_the_same_steps_and_targets():
    head, batch = make_head(), make_batch(8, packing=True)
    at = Supervision.of(batch)
    weights = at.weights("token", torch.tensor(float(len(at.places))))
    depths = list(head.depths(batch, at, STEPS))
    empty = torch.zeros(len(batch["inputs"]), batch["inputs"].shape[1], 32)
    z = head.model.inner.Latents(empty, empty)
    losses = torch.zeros(len(at.places))
    for step, (scores, q) in enumerate(depths):
        fresh, had_step = torch.full((len(empty),), step == 0), torch.full((len(losses),), step > 0)
        before = losses
        z, losses, found_q, sums = head.persistent_step(batch, z, fresh, at, weights, losses, had_step)
        torch.testing.assert_close(losses, scores.losses, rtol=0, atol=1e-5)
        torch.testing.assert_close(found_q, q, rtol=0, atol=1e-5)
        assert sums["q_halt_count"] == (len(losses) if step else 0)
        assert sums["q_halt_wanted"].sum() == ((losses >= before - 0.01).sum() if step else 0)
        assert not any(state.requires_grad for state in z)


def test_evaluation_reports_every_depth_and_heads_with_the_last():
    head, batch = make_head(), make_batch(12, packing=True)
    at = Supervision.of(batch)
    sums, preds = head.evaluate_on(batch, at, STEPS)
    losses = []
    for depth, (scores, _) in enumerate(head.depths(batch, at, STEPS), start=1):
        right = scores.preds == at.labels
        assert sums[f"depth_{depth}/token_loss"] == scores.losses.sum()
        assert sums[f"depth_{depth}/token_accuracy"] == right.sum()
        of_document = [right[at.document == number] for number in range(12)]
        assert sums[f"depth_{depth}/exact_accuracy"] == sum(bool(flags.all()) for flags in of_document)
        assert sums[f"depth_{depth}/accuracy"].item() == pytest.approx(
            sum(f.float().mean().item() for f in of_document)
        )
        losses.append(scores.losses.sum().item())
    assert len(set(losses)) == STEPS and sums["token_loss"] == losses[-1]
    assert torch.equal(preds, scores.preds) and preds.shape == at.places.shape
    assert sums["steps"] == STEPS * 12 and sums["count"] == 12
    assert not any(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("loss_type", ["softmax_cross_entropy", "stablemax_cross_entropy"])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_change_nothing(loss_type, tied):
    batch = make_batch(8, packing=True)
    one, other = (
        trained(make_head(chunked=chunked, loss_type=loss_type, tie_embeddings=tied), batch)
        for chunked in (True, False)
    )
    assert_alike(one[0], other[0])
    assert_alike(one[1], other[1])


@pytest.mark.parametrize("detach", [True, False])
def test_half_precision_gives_about_the_same(detach):
    batch = make_batch(8, packing=True)
    exact, half = (
        trained(make_head(forward_dtype=dtype, detach_between_steps=detach), batch) for dtype in ("float32", "bfloat16")
    )
    assert half[0]["token_loss"].item() == pytest.approx(exact[0]["token_loss"].item(), rel=0.03)
    name = "model.inner.embed_tokens.embedding_weight"
    assert torch.nn.functional.cosine_similarity(half[1][name].flatten(), exact[1][name].flatten(), dim=0) > 0.95


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_a_batch_without_labels_costs_nothing(chunked, detach):
    batch = make_batch(4, packing=True)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_LABEL_ID)
    sums, grads = trained(make_head(chunked=chunked, detach_between_steps=detach), batch)
    assert all(torch.as_tensor(value).float().sum() == 0 for value in sums.values())
    assert grads and all(not grad.any() for grad in grads.values())


@every_arch
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_latents_stay_bounded_however_deep_the_recursion(arch, norm):
    head = make_head(arch, norm=norm, H_cycles=3, L_cycles=6, forward_dtype="bfloat16")
    batch = make_batch(4, packing=True)
    core = head.model.inner
    with torch.no_grad():
        for z, _ in core.unroll(batch, 16):
            if arch != "trm_hier6" or norm == "pre":  # the idle latents of hier6 start as they were drawn
                assert all(state.abs().max() < 30 for state in z)
    assert head.evaluate_on(batch, Supervision.of(batch), 16)[0]["token_loss"].isfinite()


def test_a_loss_that_is_not_finite_reaches_the_loop_that_skips_it():
    head, batch = make_head(), make_batch(4, packing=True)
    with torch.no_grad():
        head.model.inner.embed_tokens.embedding_weight.fill_(float("nan"))
    sums, _ = trained(head, batch)
    assert sums["token_loss"].isnan() and sums["q_halt_loss"].isnan()


def test_predictions_are_pieces_of_the_vocabulary():
    head, batch = make_head(), make_batch(4, packing=True)
    preds = head.evaluate_on(batch, Supervision.of(batch), 1)[1]
    assert preds.min() >= 0 and preds.max() < VOCAB


def test_the_area_under_the_curve_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    wanted, unwanted = (torch.randint(0, 4, (7,), generator=generator).tolist() for _ in range(2))
    good = [place for place, count in enumerate(wanted) for _ in range(count)]
    bad = [place for place, count in enumerate(unwanted) for _ in range(count)]
    pairs = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert 0.2 < sum(pairs) / len(pairs) < 0.8
    assert area_under_roc(wanted, unwanted) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_roc([0, 0, 1], [1, 0, 0]) == 1 and area_under_roc([1, 0], [0, 1]) == 0
    assert area_under_roc([0, 0], [1, 1]) != area_under_roc([0, 0], [1, 1]), "not a number: nothing to compare"
