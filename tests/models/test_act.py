"""What every architecture must do: shapes, causality, gradients everywhere, and rows that come and go by themselves."""

from typing import Any

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from engine.registry import load_model_class
from models.act import ActModel, ExplorationDraws, NetworkCalls
from models.attention import FULL
from models.layers import Block, Surroundings
from models.losses import ACTLossHead

ARCHS = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "trm_singlez": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "recursive_reasoning.transformers_baseline@Model_ACTV2",
}
ROWS, LENGTH, VOCAB, WIDTH = 3, 8, 11, 32
PREFIX = {"puzzle_emb_ndim": 40, "puzzle_emb_len": 2}
every_arch = pytest.mark.parametrize("arch", ARCHS)


def make(arch: str, **options: Any) -> ActModel:
    """A model that wants everything: heads and puzzle table are not at their zeros."""
    torch.manual_seed(1)
    config = {
        **{"seq_len": LENGTH, "vocab_size": VOCAB, "num_puzzle_identifiers": 5, "hidden_size": WIDTH, "num_heads": 2},
        **{"H_layers": 1, "L_layers": 1, "H_cycles": 2, "L_cycles": 2, "halt_max_steps": 3, "forward_dtype": "float32"},
    }
    model = load_model_class(ARCHS[arch])(config | options)
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.02)
    torch.nn.init.zeros_(model.inner.q_head.bias)
    if model.puzzle_emb is not None:
        torch.nn.init.normal_(model.puzzle_emb.weights)
    return model


def make_batch(seed: int = 0, rows: int = ROWS, length: int = LENGTH) -> dict[str, torch.Tensor]:
    draw = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.int32}
    return {
        "inputs": torch.randint(0, VOCAB, (rows, length), **draw),
        "labels": torch.randint(0, VOCAB, (rows, length), **draw),
        "puzzle_identifiers": torch.randint(0, 5, (rows,), **draw),
    }


@torch.no_grad()
def final_logits(model: ActModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits after all supervision steps."""
    carry = model.eval().initial_carry(batch)
    while True:
        carry, outputs = model(carry, batch)
        if carry.halted.all():
            return outputs["logits"]


@every_arch
@pytest.mark.parametrize("options", [{}, PREFIX, {"mlp_t": True}, {"pos_encodings": "learned"}, {"num_heads": 1}])
def test_shapes_and_types(arch, options):
    model, batch = make(arch, **options), make_batch()
    prefix = options.get("puzzle_emb_len", 0)
    carry, outputs = model(model.initial_carry(batch), batch)
    assert outputs["logits"].shape == (ROWS, LENGTH, VOCAB)
    assert outputs["q_halt_logits"].shape == outputs["q_continue_logits"].shape == (ROWS,)
    assert outputs["q_halt_logits"].dtype == torch.float32
    for state in carry.inner_carry:
        assert state.shape == (ROWS, prefix + LENGTH, WIDTH) and not state.requires_grad
    assert carry.steps.tolist() == [1] * ROWS and carry.steps.dtype == torch.int32
    assert carry.current_data.keys() == batch.keys()


@every_arch
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_latents_have_the_dtype_that_was_asked_for(arch, dtype):
    model, batch = make(arch, forward_dtype=dtype), make_batch()
    carry, outputs = model(model.initial_carry(batch), batch)
    assert {state.dtype for state in carry.inner_carry} == {getattr(torch, dtype)}
    assert outputs["logits"].dtype == getattr(torch, dtype)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@every_arch
@pytest.mark.parametrize(
    "options", [{}, {"pos_encodings": "learned"}, {"pos_encodings": "none", "norm": "pre"}, PREFIX]
)
def test_a_causal_model_does_not_look_ahead(arch, options):
    batch, place = make_batch(), 4
    changed = {name: value.clone() for name, value in batch.items()}
    changed["inputs"][:, place] = (changed["inputs"][:, place] + 1) % VOCAB
    seen = {}
    for causal in (True, False):
        model = make(arch, causal=causal, **options)
        seen[causal] = (final_logits(model, batch) - final_logits(model, changed)).abs().amax(dim=(0, 2))
    assert seen[True][:place].max() <= 1e-6, "a token must not change what stands before it"
    assert seen[True][place:].min() > 1e-4, "but all from there on"
    assert seen[False].min() > 1e-4, "a model that is not causal sees it everywhere"


@every_arch
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "pos_encodings": "learned", "norm": "pre"},
        {"mlp_t": True},
        {"grad_cycles": 3, **PREFIX},
        {"latent_init": "embedding", "tie_embeddings": True},
        {"no_ACT_continue": False},
    ],
)
def test_the_gradient_reaches_every_weight(arch, options):
    head = ACTLossHead(make(arch, **options)).train()
    batch = make_batch()
    carry = head.initial_carry(batch)
    for _ in range(2):
        carry, loss, _, _, _ = head(return_keys=(), carry=carry, batch=batch)
        loss.backward()
    # A token that the batch lacks gets none, nor the value of going on where it is not trained.
    tokens = batch["inputs"].unique().tolist()
    q_rows = [0, 1] if head.model.trains_q_continue else [0]
    exempt = {"embed_tokens.embedding_weight": tokens, "q_head.weight": q_rows, "q_head.bias": q_rows}
    for name, parameter in head.named_parameters():
        rows = exempt.get(name.removeprefix("model.inner."), range(len(parameter)))
        assert parameter.grad is not None, name
        assert all(parameter.grad[row].abs().sum() > 0 for row in rows), name
    if head.model.puzzle_emb is not None:
        assert all(rows.grad.abs().sum() > 0 for _, rows in head.model.puzzle_emb.lent)


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
    model.draws = ExplorationDraws(torch.Generator().manual_seed(0), total_rows=400, first_row=0)
    carry, _ = model.train()(model.initial_carry(batch), batch)
    going = 1 - carry.halted.float().mean().item()
    assert going == pytest.approx(0.5, abs=0.1), "half of the rows explore, all of them for 2 steps or more"
    for _ in range(20):
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
    beyond, _ = core.step(carry.inner_carry, core.embed(batch), core.surroundings(batch))
    halt, _ = core.q_logits(beyond)
    torch.testing.assert_close(second["target_q_continue"], halt.sigmoid().detach(), rtol=0, atol=1e-6)


def gradients(model: ActModel) -> dict[str, torch.Tensor]:
    batch = make_batch()
    model.zero_grad()
    model.eval()(model.initial_carry(batch), batch)[1]["logits"].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_arch
def test_grad_cycles_says_how_many_network_calls_carry_gradient(arch):
    total = make(arch).inner.calls_per_step()
    last = make(arch).inner.calls_in_last_cycle()
    found = {wanted: gradients(make(arch, grad_cycles=wanted)) for wanted in ("last_cycle", "all", last, total, 1000)}
    torch.testing.assert_close(found["last_cycle"], found[last])
    torch.testing.assert_close(found["all"], found[total])
    torch.testing.assert_close(found["all"], found[1000])
    if total > last:
        name = "inner.L_level.layers.0.mlp.down_proj.weight"
        assert not torch.allclose(found["last_cycle"][name], found["all"][name], rtol=1e-2)


@pytest.mark.parametrize("wanted", range(1, 7))
def test_only_the_last_calls_carry_gradient_and_the_values_stay(wanted):
    core, batch = make("trm", grad_cycles=wanted).inner, make_batch()
    carried = []

    class Watched(NetworkCalls):
        def __call__(self, level, state):
            out = super().__call__(level, state)
            carried.append(out.requires_grad)
            return out

    x = core.embed(batch)
    z = core.recurse(core.initial_latents(x), x, Watched(core.surroundings(batch), 6, core.calls_with_grad()))
    assert carried == [False] * (6 - wanted) + [True] * wanted
    whole = make("trm", grad_cycles="all").inner
    torch.testing.assert_close(z, whole.step(whole.initial_latents(x), x, whole.surroundings(batch))[0])


@every_arch
@pytest.mark.parametrize("options", [{}, {"pos_encodings": "learned", "norm": "pre"}, PREFIX])
def test_documents_that_share_a_row_do_not_see_each_other(arch, options):
    model = make(arch, causal=True, **options)
    sizes = (3, 1, 4)
    packed = make_batch(rows=2)
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    positions = torch.cat([torch.arange(size) for size in sizes])
    packed |= {"documents": numbers.expand(2, -1).int(), "positions": positions.expand(2, -1).int()}
    together = final_logits(model, packed)
    start = 0
    for size in sizes:
        alone = {name: packed[name][:, start : start + size] for name in ("inputs", "labels")}
        alone["puzzle_identifiers"] = packed["puzzle_identifiers"]
        found = final_logits(shortened(model, size), alone)
        torch.testing.assert_close(together[:, start : start + size], found, rtol=0, atol=1e-5)
        start += size
    without_borders = {name: value for name, value in packed.items() if name not in ("documents", "positions")}
    assert (final_logits(model, without_borders) - together)[:, 4:].abs().max() > 1e-3


def shortened(model: ActModel, length: int) -> ActModel:
    """The same weights in a model for shorter rows; only the learned positions depend on the length."""
    short = type(model)(model.config.model_copy(update={"seq_len": length}))
    state = {name: value for name, value in model.state_dict().items() if "embed_pos" not in name}
    short.load_state_dict(state, strict=False)
    if model.config.pos_encodings == "learned":
        positions = model.inner.embed_pos.embedding_weight
        short.inner.embed_pos.embedding_weight.data = positions.data[: short.config.total_len]
    return short


@every_arch
def test_tied_embeddings_are_one_parameter(arch):
    tied, apart = make(arch, tie_embeddings=True), make(arch)
    assert tied.inner.lm_head.weight is tied.inner.embed_tokens.embedding_weight
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, apart)]
    assert count[1] - count[0] == VOCAB * WIDTH
    assert tied.state_dict().keys() == apart.state_dict().keys(), "a checkpoint has both names"


@every_arch
def test_the_answer_can_start_from_the_embedded_input(arch):
    batch = make_batch()
    for start in ("learned", "embedding"):
        core = make(arch, latent_init=start).inner
        x = core.embed(batch)
        answer = getattr(core.initial_latents(x), core.answer)
        if start == "embedding":
            assert torch.equal(answer, x)
        else:
            assert torch.equal(answer, answer[:1, :1].expand_as(answer)), "one vector, whatever the input"
        others = [z for name, z in core.initial_latents(x)._asdict().items() if name != core.answer]
        assert all(torch.equal(z, z[:1, :1].expand_as(z)) for z in others)


def test_a_post_norm_block_normalises_the_state_that_it_hands_on():
    x = 50 * torch.randn(2, 5, WIDTH)
    for mix_len in (None, 5):
        out = Block(WIDTH, 2, 4.0, norm="post", mix_len=mix_len)(x, Surroundings(None, FULL))
        assert torch.allclose(out.square().mean(-1), torch.ones(2, 5), atol=1e-3)


@pytest.mark.parametrize("silent", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_pre_norm_block_adds_to_the_state_what_it_makes_of_the_normalised_one(silent):
    """With one half silenced the other one alone adds, and the size of the state must not matter to it."""
    block, x, around = Block(WIDTH, 2, 4.0, norm="pre"), torch.randn(2, 5, WIDTH), Surroundings(None, FULL)
    torch.nn.init.zeros_(block.get_submodule(silent).weight)
    added = block(x, around) - x
    assert added.square().mean().sqrt() > 0.05
    torch.testing.assert_close(block(100 * x, around) - 100 * x, added, rtol=0, atol=1e-3)


@every_arch
def test_the_output_head_of_a_pre_norm_model_reads_a_normalised_answer(arch):
    core = make(arch, norm="pre", **PREFIX).inner
    answer = 50 * torch.randn(ROWS, core.config.total_len, WIDTH)
    read = core.hidden(answer)
    assert read.shape == (ROWS, LENGTH, WIDTH)
    assert torch.allclose(read.square().mean(-1), torch.ones(ROWS, LENGTH), atol=1e-3)
    assert torch.equal(make(arch, **PREFIX).inner.hidden(answer), answer[:, 2:])


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
