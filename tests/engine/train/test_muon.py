"""Muon beside the others: which weight goes where, what a step is, and that a resumed one goes on bit for bit."""

import io

import pytest
import torch
import torch.nn.functional as F

from engine.train.muon import MuonOptions, orthogonal
from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.schedule import RestartSchedule
from tests.models.small import make
from tests.models.small_retnet import hidden_of, make_ids, make_model

NAMES = ["adamw", "adam_atan2", "muon"]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1, "muon": MuonOptions(momentum=0.9)}
IDS = make_ids(rows=4)
CONSTANT = RestartSchedule(warmup_steps=0, plateau_steps=10**6, cosine_steps=1, cosine_growth=1, min_lr=0.0)


def groups_of(module, optimizer) -> dict[str, dict]:
    """Name of a weight -> the options of its group."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def learn(model, optimizer, steps: int, first: int = 1) -> list[float]:
    losses = []
    optimizers = OptimizerSet(optimizer, OPTIONS["lr"], None, 0.0, CONSTANT)
    for step in range(first, first + steps):
        logits = model.inner.lm_head(hidden_of(model, IDS))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        optimizers.step(step)
        optimizers.zero_grad()
    return losses


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(tied):
    model = make_model(tie_embeddings=tied)
    groups = groups_of(model, network_optimizer("muon", model, **OPTIONS))
    muon = {name for name, group in groups.items() if group["is_muon"]}
    matrices = ("retention.qkvg_proj", "retention.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert muon == {f"inner.retention_level.layers.{n}.{matrix}.weight" for n in (0, 1) for matrix in matrices}
    assert groups.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, group in groups.items():
        assert group["lr_scale"] == (1.0 if name in muon else 0.25)
        assert group["weight_decay"] == (0.0 if "norm" in name else 0.1)
    assert groups["inner.retention_level.layers.0.retention.qkvg_proj.weight"]["parts"] == [32, 32, 64, 64]
    assert groups["inner.retention_level.layers.0.mlp.gate_up_proj.weight"]["parts"] == [256, 256]


def test_muon_knows_the_fused_matrices_of_a_recursive_student():
    model = make("trm")
    groups = groups_of(model, network_optimizer("muon", model, **OPTIONS))
    width = model.config.hidden_size
    muon = {name.split(".", 4)[-1]: group["parts"] for name, group in groups.items() if group["is_muon"]}
    assert muon["self_attn.qkv_proj.weight"] == [width] * 3 and muon["self_attn.o_proj.weight"] == []
    assert not any(word in name for name in muon for word in ("embed", "head", "q_head"))
    assert not groups["inner.q_head.weight"]["is_muon"]


@pytest.mark.parametrize("name", ["adamw", "adam_atan2"])
def test_only_matrices_decay(name):
    model = make_model()
    for weight, group in groups_of(model, network_optimizer(name, model, **OPTIONS)).items():
        assert group["weight_decay"] == (0.1 if dict(model.named_parameters())[weight].ndim > 1 else 0.0)
    assert not model.inner.q_head.weight.requires_grad
    assert "inner.q_head.weight" not in groups_of(model, network_optimizer(name, model, **OPTIONS))


def test_fused_matrices_are_made_orthogonal_part_by_part():
    """A step without decay: each part moves by its own orthogonal matrix, however large the gradient of the others is."""
    model = make_model()
    optimizer = network_optimizer("muon", model, **(OPTIONS | {"weight_decay": 0.0}))
    layer = model.inner.retention_level.layers[0].retention
    before = layer.qkvg_proj.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(before.shape, generator=generator)
    gradient[:32] *= 1e-4
    layer.qkvg_proj.weight.grad = gradient.clone()
    optimizer.step()
    moved = layer.qkvg_proj.weight.detach() - before
    for part, given in zip(moved.split([32, 32, 64, 64]), gradient.split([32, 32, 64, 64]), strict=True):
        size = 1e-2 * 0.2 * max(part.shape) ** 0.5
        singular = torch.linalg.svdvals(part / size)
        assert singular.min() > 0.3 and singular.median() > 0.6 and singular.max() < 1.25
        assert (part * given).sum() < 0, "downhill"
        assert part.square().mean().sqrt() == pytest.approx(0.2 * 1e-2, rel=0.2), "the size of what AdamW would add"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_a_matrix_alone_goes_the_way_of_torchs_muon():
    """Which iterates in bfloat16, hence a few percent."""
    model = make_model()
    matrix = model.inner.retention_level.layers[0].mlp.down_proj.weight
    other = matrix.detach().clone().requires_grad_()
    mine = network_optimizer("muon", model, **OPTIONS)
    settings = {"momentum": OPTIONS["muon"].momentum, "weight_decay": OPTIONS["weight_decay"]}
    theirs = torch.optim.Muon([other], lr=OPTIONS["lr"], adjust_lr_fn="match_rms_adamw", **settings)
    for seed in range(4):
        before = other.detach().clone()
        matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed))
        other.grad = matrix.grad.clone()
        mine.step()
        theirs.step()
        moved = (other - before).norm()
        assert (matrix - other).norm() < 0.05 * moved
        other.data.copy_(matrix)


def test_a_matrix_becomes_the_orthogonal_one_next_to_it():
    for shape in ((8, 8), (5, 16), (16, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonal(torch.stack([100 * matrix, matrix]))[1]
        assert found.shape == shape
        along = (u.T @ found @ v.T).diagonal()
        assert along.min() > 0.6 and (found - u @ torch.diag(along) @ v).abs().max() < 1e-3
    assert not orthogonal(torch.zeros(1, 3, 4)).any()


def test_what_muon_leaves_out_is_adamw_at_its_share_of_the_rate():
    """The same numbers as those of torch, weight decay included."""
    mine, others = make_model(), make_model()
    hybrid = network_optimizer("muon", mine, **OPTIONS)
    table, norm = others.inner.embed_tokens.embedding_weight, others.inner.retention_level.norm.weight
    groups = [{"params": [table], "weight_decay": 0.1}, {"params": [norm], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=0.25 * OPTIONS["lr"], betas=OPTIONS["betas"])
    for seed in range(5):
        for model, optimizer in ((mine, hybrid), (others, plain)):
            generator = torch.Generator().manual_seed(seed)
            for p in (model.inner.embed_tokens.embedding_weight, model.inner.retention_level.norm.weight):
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    torch.testing.assert_close(mine.inner.embed_tokens.embedding_weight, table, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.inner.retention_level.norm.weight, norm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_and_a_resumed_run_goes_on_bit_for_bit(name):
    whole, cut = make_model(), make_model()
    optimizer = network_optimizer(name, cut, **OPTIONS)
    whole_losses = learn(whole, network_optimizer(name, whole, **OPTIONS), 12)
    assert whole_losses[-1] < whole_losses[0] - 1.0

    losses = learn(cut, optimizer, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = network_optimizer(name, cut, **OPTIONS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert losses + learn(cut, resumed, 7, first=6) == whole_losses
    for (key, value), other in zip(cut.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(value, other), key


def test_the_state_of_muon_is_half_that_of_adamw():
    model = make_model()
    optimizer = network_optimizer("muon", model, **OPTIONS)
    learn(model, optimizer, 1)
    matrix = model.inner.retention_level.layers[0].mlp.down_proj.weight
    assert {name: value.numel() for name, value in optimizer.state[matrix].items()} == {"momentum": matrix.numel()}


def test_weights_without_gradient_stay_as_they_are():
    model = make_model()
    optimizer = network_optimizer("muon", model, **OPTIONS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_unknown_optimizer_names_the_known_ones():
    with pytest.raises(ValueError, match="muon"):
        network_optimizer("sgd", make_model(), **OPTIONS)
