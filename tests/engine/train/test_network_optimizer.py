"""The optimizer of a network: which weights decay, and runs that were saved with other groups of them."""

import pytest
import torch

from engine.train.network_optimizer import decay_groups, network_optimizer, trained_parameters
from engine.train.update_rules import AdamATan2
from tests.models.small import make
from tests.models.small_retnet import make_model

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


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


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_may_be_left_without_decay(tied):
    model = make("trm", tie_embeddings=tied, pos_encodings="learned")
    names = {id(p): key for key, p in model.named_parameters()}
    groups = network_optimizer("adamw", model, **OPTIONS, decays_embeddings=False).param_groups
    spared = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"] == 0}
    assert spared == {"inner.embed_tokens.embedding_weight", "inner.embed_pos.embedding_weight"}
