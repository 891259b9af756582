import numpy as np
import pytest
import torch

from engine.train.optimizers import (
    AdamATan2,
    OptimizerSet,
    SparseSignSGD,
    decay_groups,
    network_optimizer,
    trained_parameters,
)
from models.sparse_embedding import CastedSparseEmbedding
from tests.models.parity import arrays
from tests.models.small import make
from tests.models.small_retnet import make_model

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_adam_atan2_equals_the_reference(dtype, atol):
    data = arrays("optim.npz")
    parameters = {n: torch.nn.Parameter(torch.from_numpy(data[f"adam_atan2/param0.{n}"]).to(dtype)) for n in "wb"}
    optimizer = AdamATan2(
        parameters.values(), betas=tuple(data["adam_atan2/betas"]), weight_decay=float(data["adam_atan2/weight_decay"])
    )
    for t, lr in enumerate(data["adam_atan2/lr_per_step"], start=1):
        optimizer.param_groups[0]["lr"] = float(lr)
        for name, parameter in parameters.items():
            key = f"adam_atan2/grad{t}.{name}"  # at step 3 `b` has none
            parameter.grad = torch.from_numpy(data[key]).to(dtype) if key in data else None
        optimizer.step()
        for name, parameter in parameters.items():
            for field, value in (("param", parameter.detach()), *optimizer.state[parameter].items()):
                if field != "step":
                    np.testing.assert_allclose(value, data[f"adam_atan2/{field}{t}.{name}"], rtol=0, atol=atol)


def test_sign_sgd_equals_the_reference():
    data = arrays("optim.npz")
    table = CastedSparseEmbedding(6, 4, 0.0, torch.float32).train()
    table.weights.copy_(torch.from_numpy(data["sign_sgd/weights0"]))
    optimizer = SparseSignSGD(table, lr=0.0, weight_decay=float(data["sign_sgd/weight_decay"]))
    for t, lr in enumerate(data["sign_sgd/lr_per_step"], start=1):
        out = table(torch.from_numpy(data[f"sign_sgd/ids{t}"]))
        np.testing.assert_array_equal(out.detach(), data[f"sign_sgd/out{t}"])
        table.local_weights.grad = torch.from_numpy(data[f"sign_sgd/grad{t}"])
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        np.testing.assert_allclose(table.weights, data[f"sign_sgd/weights{t}"], rtol=0, atol=2e-6)


def test_split_batches_make_the_same_sign_step_as_one():
    tables = [CastedSparseEmbedding(5, 3, 0.0, torch.float32).train() for _ in range(2)]
    ids, grads = torch.tensor([1, 3, 1, 4]), torch.randn(4, 3)
    for table, parts in zip(tables, ([slice(0, 4)], [slice(0, 2), slice(2, 4)]), strict=True):
        for part in parts:
            table(ids[part])
            table.local_weights.grad = grads[part]
        SparseSignSGD(table, lr=0.1, weight_decay=0.0).step()
    assert torch.equal(tables[0].weights, tables[1].weights)
    assert tables[0].weights[[1, 3, 4]].abs().sum() > 0


def test_the_compiled_optimizer_is_refused_without_cuda():
    with pytest.raises(ValueError, match="CUDA"):
        network_optimizer("adam_atan2_cuda", torch.nn.Linear(1, 1), **OPTIONS)


@pytest.mark.parametrize("name", ["adam_atan2", "adamw"])
def test_norms_and_biases_do_not_decay_but_for_the_halting_heads_bias_as_in_the_reference(name):
    trm = network_optimizer(name, make("trm"), **OPTIONS).param_groups
    assert [group["weight_decay"] for group in trm] == [0.1]
    retnet = make_model()
    names = {id(p): key for key, p in retnet.named_parameters()}
    decays = {
        names[id(p)]: g["weight_decay"]
        for g in network_optimizer(name, retnet, **OPTIONS).param_groups
        for p in g["params"]
    }
    assert decays == {key: 0.0 if "norm" in key else 0.1 for key, p in retnet.named_parameters() if p.requires_grad}


def all_in_one(module):
    return [{"params": list(module.parameters()), "weight_decay": 0.1}]


def matrices_and_vectors(module):
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if (p.ndim == 1) == is_vector], "weight_decay": 0.0}
        for is_vector in (False, True)
    ]


def embeddings_without_decay(module):
    return decay_groups(trained_parameters(module).items(), 0.0, decays_embeddings=False)


@pytest.mark.parametrize(
    ("make_module", "groups_before"),
    [
        (make_model, all_in_one),
        (make_model, embeddings_without_decay),
        (lambda: make("trm"), matrices_and_vectors),
        (lambda: make("trm"), all_in_one),
    ],
    ids=["retnet of one group", "retnet with embeddings apart", "trm with vectors apart", "trm"],
)
def test_a_run_that_was_saved_with_other_groups_resumes_with_them(make_module, groups_before):
    """Step by step as if nothing had been regrouped."""

    def steps(module, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
            optimizer.step()
        return [p.detach().clone() for p in module.parameters()]

    whole, cut = make_module(), make_module()
    expected = steps(whole, AdamATan2(groups_before(whole), lr=0.1), range(4))
    first = AdamATan2(groups_before(cut), lr=0.1)
    steps(cut, first, range(2))
    resumed = network_optimizer("adam_atan2", cut, **(OPTIONS | {"weight_decay": 0.5}))
    resumed.load_state_dict(first.state_dict())
    for found, wanted in zip(steps(cut, resumed, range(2, 4)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_optimizer_state_survives_saving():
    def train(parameter, optimizer, steps):
        for _ in range(steps):
            parameter.grad = parameter.detach() * 2 + 1
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(3))
    train(whole, AdamATan2([whole], lr=0.1), 4)
    first = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamATan2([first], lr=0.1)
    train(first, optimizer, 2)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = AdamATan2([second], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, 2)
    assert torch.equal(whole, second)


@pytest.mark.parametrize(("saved_groups", "kept"), [(2, 0.5), (1, 0.1)])
def test_a_resumed_run_has_its_own_options_unless_the_saved_groups_are_others(saved_groups, kept):
    """Saved with a decay of 0.1, resumed with 0.5."""

    def optimizers(groups, decay):
        module = make_model()
        network = network_optimizer("adam_atan2", module, **(OPTIONS | {"weight_decay": decay}))
        if groups == 1:
            network = AdamATan2(list(module.parameters()), lr=0.1, weight_decay=decay)
        return OptimizerSet(network, 0.1, None, 0.0, schedule=None)

    resumed = optimizers(2, 0.5)
    resumed.load_state_dict(optimizers(saved_groups, 0.1).state_dict())
    groups = resumed.network.param_groups
    assert len(groups) == saved_groups and max(group["weight_decay"] for group in groups) == kept


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_may_be_left_without_decay(tied):
    model = make("trm", tie_embeddings=tied, pos_encodings="learned")
    names = {id(p): key for key, p in model.named_parameters()}
    groups = network_optimizer("adamw", model, **OPTIONS, decays_embeddings=False).param_groups
    spared = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"] == 0}
    assert spared == {"inner.embed_tokens.embedding_weight", "inner.embed_pos.embedding_weight"}
