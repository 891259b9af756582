"""Several chains: the best one learns and answers for all, and equal ones are as good as one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.losses.puzzles import ACTLossHead
from tests.models.small import LENGTH, PREFIX, ROWS, VOCAB, WIDTH, make, make_batch

CHAINS, STEPS = 3, 3
OPTIONS: list[dict[str, Any]] = [
    {"L_cycles": 3},
    {"grad_cycles": "all", **PREFIX},
    {"grad_cycles": 4, "H_cycles": 3, "mlp_t": True},
    {"latent_init": "embedding"},
]
every_option = pytest.mark.parametrize("options", OPTIONS)


def make_head(chains: int, **options: Any) -> ACTLossHead:
    """Rows never halt by themselves."""
    head = ACTLossHead(make("trm", chains=chains, halt_max_steps=9, **options)).train()
    torch.nn.init.constant_(head.model.inner.q_head.bias, -9.0)
    return head


def starts(head: ACTLossHead) -> Tensor:
    """(K, D)"""
    core = head.model.inner
    return torch.cat((core.L_init[None], core.chains_init))


def gradients(head: ACTLossHead) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    lent = head.model.puzzle_emb.lent if head.model.puzzle_emb is not None else []
    return found | {f"puzzle {i}": rows.grad for i, (_, rows) in enumerate(lent)}


def learn(head: ACTLossHead, batch: dict[str, Tensor], carry=None):
    """The carry, the outputs, the sums and the gradients of one step."""
    head.zero_grad()
    if head.model.puzzle_emb is not None:
        head.model.puzzle_emb.lent.clear()
    carry, loss, sums, outputs, _ = head(
        return_keys=("logits", "q_halt_logits"), carry=carry or head.initial_carry(batch), batch=batch
    )
    loss.backward()
    return carry, outputs, sums, gradients(head)


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_weights_and_their_names_are_those_of_one_chain():
    one, several = make("trm").state_dict(), make("trm", chains=CHAINS).state_dict()
    assert several.keys() - one.keys() == {"inner.chains_init"}
    assert not one.keys() - several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one if "q_head" not in name)
    assert several["inner.chains_init"].shape == (CHAINS - 1, WIDTH)
    assert len(several["inner.chains_init"].unique(dim=0)) == CHAINS - 1


@every_option
def test_chains_that_start_alike_are_one_chain(options):
    one, several = make_head(1, **options), make_head(CHAINS, **options)
    several.load_state_dict(one.state_dict(), strict=False)
    several.model.inner.chains_init[:] = several.model.inner.L_init
    batches = [make_batch(1), make_batch(2)]
    carries = [None, None]
    for step in range(STEPS):
        found = []
        for number, head in enumerate((one, several)):
            if carries[number] is not None:  # one row takes another puzzle half way
                carries[number].halted = torch.tensor([False, step == 1, False])
            found.append(learn(head, batches[step % 2], carries[number]))
            carries[number] = found[-1][0]
        assert_close(found[1][1:], found[0][1:])
        assert_close(carries[1].inner_carry.z_H, carries[0].inner_carry.z_H)
        for chain in range(CHAINS):
            assert_close(carries[1].inner_carry.z_L[:, chain], carries[0].inner_carry.z_L)


@every_option
@pytest.mark.parametrize("is_training", [True, False])
def test_the_best_one_learns_and_answers_for_all(options, is_training):
    """Each row and chain alone, as a model of one chain with that start."""
    rows = 8
    several, batch = make_head(CHAINS, **options).train(is_training), make_batch(rows=rows)
    torch.nn.init.normal_(several.model.inner.q_head.weight)
    carry, outputs, _, found = learn(several, batch)

    winners, expected = [], {}
    for row in range(rows):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        tries = []
        for start in starts(several):
            head = make_head(1, **options).train(is_training)
            head.load_state_dict(several.state_dict(), strict=False)
            head.model.inner.L_init.copy_(start)
            tries.append(learn(head, alone))
        measure = (lambda t: t[2]["lm_loss"].item()) if is_training else (lambda t: -t[1]["q_halt_logits"].item())
        worth = [measure(tried) for tried in tries]
        winner = worth.index(min(worth))
        winners.append(winner)
        assert_close({name: value[row : row + 1] for name, value in outputs.items()}, tries[winner][1])
        assert_close(carry.inner_carry.z_H[row : row + 1], tries[winner][0].inner_carry.z_H)
        for chain, tried in enumerate(tries):
            assert_close(carry.inner_carry.z_L[row : row + 1, chain], tried[0].inner_carry.z_L)
        for name, gradient in tries[winner][3].items():
            expected.setdefault(name, []).append(gradient)
    assert len(set(winners)) > 1, "or it would not show that each row has a winner of its own"
    for name, parts in expected.items():
        assert_close(found[name], torch.cat(parts) if name.startswith("puzzle ") else sum(parts))


def test_every_chain_goes_on_from_the_answer_of_the_best_and_its_own_thought():
    several, batch = make_head(CHAINS), make_batch()
    first = learn(several, batch)[0]
    z = first.inner_carry
    assert z.z_H.shape == (ROWS, LENGTH, WIDTH) and z.z_L.shape == (ROWS, CHAINS, LENGTH, WIDTH)
    second = learn(several, batch, first)[0]
    core = several.model.inner
    for chain in range(CHAINS):
        with torch.no_grad():
            alone, _ = core.step(z._replace(z_L=z.z_L[:, chain]), core.embed(batch), core.context(batch))
        assert_close(second.inner_carry.z_L[:, chain], alone.z_L)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_evaluation_looks_at_no_label_and_needs_no_gradient(with_gradient):
    head, batch = make_head(CHAINS).eval(), make_batch()
    torch.nn.init.normal_(head.model.inner.q_head.weight)
    unlike = batch | {"labels": (batch["labels"] + 1) % VOCAB}
    found = []
    for each, has_gradient in ((batch, True), (unlike, with_gradient)):
        carry = head.initial_carry(each)
        with torch.set_grad_enabled(has_gradient):
            for _ in range(STEPS):
                carry, outputs = head.model(carry, each)
        found.append(outputs)
    assert_close(found[0], found[1])


def test_a_thought_that_is_not_finite_is_not_passed_over():
    several, batch = make_head(CHAINS), make_batch()
    carry = learn(several, batch)[0]
    carry.inner_carry.z_L[1, 2] = torch.nan
    _, _, sums, _ = learn(several, batch, carry)
    assert not sums["lm_loss"].isfinite()


def test_the_value_of_going_on_is_refused():
    with pytest.raises(ValueError, match="no_ACT_continue"):
        make("trm", chains=CHAINS, no_ACT_continue=False)
