"""Adaptive computation time: rows that come and go by themselves, halting, exploration; and the blocks inside."""

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from models.attention import FULL
from models.layers import AttentionContext, Block
from models.losses.puzzles import ACTLossHead
from tests.models.small import PREFIX, ROWS, WIDTH, final_logits, make, make_batch


def test_halted_rows_take_the_new_sample_and_others_keep_theirs():
    model = make("trm", halt_max_steps=4)
    first, second = make_batch(1), make_batch(2)
    carry, _ = model.train()(model.initial_carry(first), first)
    carry.halted = torch.tensor([True, False, True])
    carry.steps = torch.tensor([3, 2, 4], dtype=torch.int32)
    before = carry.inner_carry.z_H.clone()
    carry.inner_carry.z_H[0] = 1e6  # what a finished row has thought is of no use to the next one
    after, outputs = model(carry, second)
    assert after.steps.tolist() == [1, 3, 1]
    for name, value in after.current_data.items():
        assert torch.equal(value[[0, 2]], second[name][[0, 2]]) and torch.equal(value[1], first[name][1])

    fresh, fresh_outputs = model(model.initial_carry(second), second)
    torch.testing.assert_close(outputs["logits"][[0, 2]], fresh_outputs["logits"][[0, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(after.inner_carry.z_H[[0, 2]], fresh.inner_carry.z_H[[0, 2]], rtol=0, atol=1e-5)
    assert (outputs["logits"][1] - fresh_outputs["logits"][1]).abs().max() > 1e-3
    assert (after.inner_carry.z_H[1] - before[1]).abs().max() > 1e-3, "it went on from where it stood"


@pytest.mark.parametrize("arch", ["trm", "hrm", "transformers_baseline"])
def test_rows_halt_when_they_want_to_and_at_the_limit(arch):
    for wish in (8.0, -8.0):
        model, batch = make(arch, halt_max_steps=3), make_batch()
        torch.nn.init.zeros_(model.inner.q_head.weight)
        model.inner.q_head.bias.data = torch.tensor([wish, 0.0])
        carry = model.train().initial_carry(batch)
        halted = []
        for _ in range(3):
            carry, _ = model(carry, batch)
            halted.append(carry.halted.all().item())
        assert halted == ([True] * 3 if wish > 0 else [False, False, True])

        carry, halted = model.eval().initial_carry(batch), []
        for _ in range(3):
            carry, _ = model(carry, batch)
            halted.append(carry.halted.any().item())
        assert halted == [False, False, True], "in evaluation all rows run to the limit together"


def test_exploration_keeps_rows_going_and_never_beyond_the_limit():
    model, batch = make("trm", halt_max_steps=4, halt_exploration_prob=0.5), make_batch(rows=400)
    torch.nn.init.zeros_(model.inner.q_head.weight)
    model.inner.q_head.bias.data = torch.tensor([8.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    model.explored = model.explored_steps(400, generator)
    carry, _ = model.train()(model.initial_carry(batch), batch)
    going = 1 - carry.halted.float().mean().item()
    assert going == pytest.approx(0.5, abs=0.1), "half of the rows explore, all of them for 2 steps or more"
    for _ in range(20):
        model.explored = model.explored_steps(400, generator)
        carry, _ = model(carry, batch)
        assert carry.steps.max() <= 4


@pytest.mark.parametrize("arch", ["trm", "hrm"])
def test_the_value_of_going_on_is_looked_ahead_and_not_learned_through(arch):
    model, batch = make(arch, no_ACT_continue=False, halt_max_steps=2), make_batch()
    model.train()
    carry, first = model(model.initial_carry(batch), batch)
    assert not first["target_q_continue"].requires_grad
    carry.halted = torch.zeros_like(carry.halted)
    carry, second = model(carry, batch)
    better = torch.maximum(second["q_halt_logits"], second["q_continue_logits"])
    torch.testing.assert_close(first["target_q_continue"], better.sigmoid().detach(), rtol=0, atol=1e-6)
    # After the last step there is no going on, so only halting counts.
    core = model.inner
    beyond, _ = core.step(carry.inner_carry, core.embed(batch), core.context(batch))
    halt, _ = core.q_logits(beyond)
    torch.testing.assert_close(second["target_q_continue"], halt.sigmoid().detach(), rtol=0, atol=1e-6)


def test_a_post_norm_block_normalises_the_state_that_it_hands_on():
    x = 50 * torch.randn(2, 5, WIDTH)
    for mix_len in (None, 5):
        out = Block(WIDTH, 2, 4.0, norm="post", mix_len=mix_len)(x, AttentionContext(None, FULL))
        assert torch.allclose(out.square().mean(-1), torch.ones(2, 5), atol=1e-3)


@pytest.mark.parametrize("silent", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_pre_norm_block_adds_to_the_state_what_it_makes_of_the_normalised_one(silent):
    """With one half silenced the other one alone adds, and the size of the state must not matter to it."""
    block, x, context = Block(WIDTH, 2, 4.0, norm="pre"), torch.randn(2, 5, WIDTH), AttentionContext(None, FULL)
    torch.nn.init.zeros_(block.get_submodule(silent).weight)
    added = block(x, context) - x
    assert added.square().mean().sqrt() > 0.05
    torch.testing.assert_close(block(100 * x, context) - 100 * x, added, rtol=0, atol=1e-3)


def test_the_prefix_is_the_puzzle_and_nothing_else_depends_on_it():
    model, batch = make("trm", **PREFIX), make_batch()
    x = model.eval().inner.embed(batch)
    table = model.puzzle_emb.weights[batch["puzzle_identifiers"].long()]
    flat = x[:, :2].reshape(ROWS, -1) / model.config.embed_scale
    torch.testing.assert_close(flat[:, :40], table)
    assert not flat[:, 40:].any(), "what the embedding does not fill is zero"
    other = batch | {"puzzle_identifiers": (batch["puzzle_identifiers"] + 1) % 5}
    torch.testing.assert_close(model.inner.embed(other)[:, 2:], x[:, 2:])
    assert (final_logits(model, other) - final_logits(model, batch)).abs().max() > 1e-3


def test_rows_without_labels_take_no_part():
    head = ACTLossHead(make("trm", halt_max_steps=1)).train()
    batch = make_batch()
    batch["labels"][1] = IGNORE_LABEL_ID
    _, _, metrics, outputs, _ = head(return_keys=["preds"], carry=head.initial_carry(batch), batch=batch)
    right = (outputs["preds"] == batch["labels"])[[0, 2]].float().mean(-1).sum()
    assert metrics["count"] == 2 and metrics["steps"] == 2
    torch.testing.assert_close(metrics["accuracy"], right)
    without = {name: value[[0, 2]] for name, value in batch.items()}
    _, _, expected, _, _ = head(return_keys=(), carry=head.initial_carry(without), batch=without)
    torch.testing.assert_close(metrics["lm_loss"], expected["lm_loss"], rtol=0, atol=1e-5)
