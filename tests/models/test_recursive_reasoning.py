"""What every architecture must do: shapes, causality, gradients everywhere, documents that keep apart."""

import pytest
import torch

from models.act import ActModel
from models.calls import NetworkCalls
from models.losses.puzzles import ACTLossHead
from tests.models.small import LENGTH, PREFIX, ROWS, VOCAB, WIDTH, every_arch, final_logits, make, make_batch


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
    z = core.recurse(core.initial_latents(x), x, Watched(core.context(batch), 6, core.calls_with_grad()))
    assert carried == [False] * (6 - wanted) + [True] * wanted
    whole = make("trm", grad_cycles="all").inner
    torch.testing.assert_close(z, whole.step(whole.initial_latents(x), x, whole.context(batch))[0])


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
        assert all(z.is_contiguous() for z in core.initial_latents(x)), "as later states lie, for compiled code"


@every_arch
def test_every_call_of_a_pre_norm_network_ends_normalised(arch):
    """Without that the latents grow with every call, a hundredfold in a deep recursion."""
    core = make(arch, norm="pre", **PREFIX).inner
    batch = make_batch()
    x = core.embed(batch)
    z, answers = core.step(core.initial_latents(x), 50 * x, core.context(batch))
    assert torch.allclose(answers[-1].square().mean(-1), torch.ones(ROWS, core.config.total_len), atol=1e-3)
    assert torch.equal(answers[-1], getattr(z, core.answer))
    assert torch.equal(core.hidden(answers[-1]), answers[-1][:, 2:])


@every_arch
@pytest.mark.parametrize("start", ["learned", "embedding"])
def test_the_input_may_enter_at_the_start_alone(arch, start):
    batch, seen = make_batch(), []
    told = {"latent_init": start, "recursion": "unrolled", "halt_policy": "fixed"}
    core = make(arch, injection="start", **told).inner
    always = make(arch, **told).inner

    def recurse(z, x, call, plainly=core.recurse):
        seen.append((getattr(z, core.answer), x))
        return plainly(z, x, call)

    core.recurse = recurse
    list(core.unroll(batch, 2))
    x = core.embed(batch)
    first = getattr(always.initial_latents(x), core.answer)
    torch.testing.assert_close(seen[0][0], first if start == "embedding" else first + x)
    assert all(not fed.any() for _, fed in seen), "afterwards the network is fed with nothing"
