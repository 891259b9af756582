"""The classes of transformers compute what our models compute, and the weights come back bit for bit."""

import itertools

import pytest
import torch

from engine.export.native import PREFIX, from_native, native_config, obstacles, to_native
from tests.engine.text_samples import VOCAB, make_head

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.hrm_text")
LEAVES = {"injection": "start", "latent_init": "embedding"}
ONE_STEP = {"halt_max_steps": 1}
KINDS = {
    "trm": ("trm", "hrm_text", LEAVES | {"H_layers": 0, "L_layers": 2}),
    "tied": ("trm", "hrm_text", LEAVES | {"H_layers": 0, "tie_embeddings": True}),
    "one step": ("trm", "hrm_text", LEAVES | {"H_layers": 0, "H_cycles": 1, "L_cycles": 3} | ONE_STEP),
    "theta": ("trm", "hrm_text", LEAVES | {"H_layers": 0, "rope_theta": 50.0}),
    "hrm": ("hrm", "hrm_text", LEAVES),
    "dense": ("transformers_baseline", "llama", ONE_STEP | {"H_layers": 2}),
    "dense, tied": ("transformers_baseline", "llama", ONE_STEP | {"tie_embeddings": True}),
    "dense, embedded": ("transformers_baseline", "llama", ONE_STEP | {"latent_init": "embedding"}),
    "dense, once": ("transformers_baseline", "llama", ONE_STEP | {"injection": "start"}),
    "dense, embedded once": ("transformers_baseline", "llama", ONE_STEP | LEAVES),
}


def trained(arch, options):
    """A model whose state has the values of training rather than those of its start."""
    head = make_head(arch, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(1.7)
    return head


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_computes_the_same_and_gives_the_weights_back(kind, tmp_path):
    arch, layout, options = KINDS[kind]
    head = trained(arch, options)
    config, weights = head.model.config, head.state_dict()
    steps = config.halt_max_steps
    assert obstacles(config, layout, steps) == []
    theirs, rest = to_native(weights, config, layout)

    made = native_config(config, layout, steps)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**made)).eval()
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    tied = ["lm_head.weight"] if "lm_head.weight" not in theirs else []
    assert (missing, unexpected) == (tied, [])
    ids = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        *_, (_, answers) = head.model.inner.unroll({"inputs": ids}, steps)
        torch.testing.assert_close(model(ids).logits, head.model.inner.lm_head(answers[-1]), rtol=0, atol=1e-4)
        together, one_by_one = model(ids).logits, []
        cache = None
        for at in range(ids.shape[1]):
            found = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            one_by_one.append(found.logits)
    torch.testing.assert_close(torch.cat(one_by_one, 1), together, rtol=0, atol=1e-4)

    again = from_native(theirs, rest, layout, 2 if arch == "hrm" else 1)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert (
        again[PREFIX + "L_init"].dtype == weights[PREFIX + "L_init"].dtype if arch != "transformers_baseline" else True
    )


@pytest.mark.parametrize(
    ("layout", "option", "value"),
    [
        *itertools.product(["hrm_text", "llama"], ["norm"], ["post"]),
        *itertools.product(["hrm_text", "llama"], ["pos_encodings"], ["learned", "none"]),
        *itertools.product(["hrm_text", "llama"], ["feed_forward"], ["gated_norm"]),
        ("hrm_text", "injection", "call"),
        ("hrm_text", "latent_init", "learned"),
        ("llama", "prefix_mask", True),
        ("llama", "halt_max_steps", 3),
    ],
)
def test_what_the_class_cannot_compute_is_named(layout, option, value):
    options = {**LEAVES, "halt_max_steps": 1} | {option: value}
    arch = "trm" if layout == "hrm_text" else "transformers_baseline"
    config = make_head(arch, **options).model.config
    (found,) = obstacles(config, layout, config.halt_max_steps)
    assert found == f"arch.{option}={str(value).lower()}"


def test_two_networks_of_different_size_and_uneven_heads_are_named():
    assert obstacles(make_head("hrm", **LEAVES, H_layers=2).model.config, "hrm_text", 3) == ["arch.H_layers=2"]
    config = make_head("trm", **LEAVES, hidden_size=34, num_heads=4).model.config
    assert obstacles(config, "hrm_text", 3) == ["arch.num_heads=4"]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="gguf"):
        from_native({}, {}, "gguf", 1)
