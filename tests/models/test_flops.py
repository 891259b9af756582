"""The operations counted from shapes are those that torch counts while the step runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from engine.config.compose import composed
from engine.config.registry import load_model_class
from models.flops import pass_flops, training_flops
from models.losses.text import Supervision

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
MAPPING = {
    FUSED: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    FUSED.default: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}
ROWS, LENGTH, VOCAB = 3, 48, 200
WIDE = {"hidden_size": 64, "num_heads": 2, "seq_len": LENGTH, "vocab_size": VOCAB, "forward_dtype": "bfloat16"}
TEXT = {"causal": True, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0}


def counted(step) -> int:
    with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        step()
    return counter.get_total_flops()


def head_of(config_name: str, arch: str, **changes):
    options = composed(config_name, [f"arch={arch}"])["arch"] | WIDE | changes
    name, loss = options.pop("name"), options.pop("loss")
    torch.manual_seed(0)
    return load_model_class(loss["name"])(load_model_class(name)(options), loss["loss_type"])


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("trm_text", {}),
        ("trm_tiny", {"supervise": "step", "grad_cycles": "all", "H_cycles": 2}),
        ("trm_tiny", {"supervise": "cycle", "grad_cycles": "all", "H_cycles": 2}),
        ("dense_text", {}),
        ("looped_text", {}),
        ("looped_text", {"supervise": "last", "grad_cycles": "all"}),
        ("looped_text", {"supervise": "last", "grad_cycles": "half"}),
        ("trm_tiny", {"supervise": "last", "grad_cycles": 3, "H_cycles": 2, "detach_between_steps": False}),
        ("retnet_tiny", {}),
        ("retnet_tiny", {"chunk_size": 16}),
    ],
)
def test_operations_of_text_are_those_that_run(arch, changes):
    head = head_of("cfg_pretrain_instruct", arch, **TEXT, **changes)
    inputs = torch.randint(3, VOCAB, (ROWS, LENGTH))
    labels = torch.where(torch.rand(ROWS, LENGTH) < 0.3, inputs, -100)
    batch = {"inputs": inputs, "labels": labels}
    at, steps = Supervision.of(batch), 3 if changes.get("supervise") == "last" else 2 if arch.startswith("trm") else 1
    weights = at.weights("token", torch.ones(()))

    found = training_flops(head.model.inner, ROWS, len(at.places), steps)
    assert found == pytest.approx(counted(lambda: head.train_on(batch, at, weights, steps)), rel=0.03)


@pytest.mark.parametrize(
    "twin",
    [
        ["arch.prefix_mask=false"],
        ["arch=trm_text", "arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1"],
    ],
)
def test_a_step_of_the_twins_of_recipe_instructions_costs_as_much(twin):
    costs = []
    for words in ([], twin):
        options = composed("cfg_pretrain_instruct", ["recipe=instructions", *words])["arch"] | WIDE
        options.pop("loss")
        core = load_model_class(options.pop("name"))(options).inner
        costs.append(training_flops(core, ROWS, LENGTH))
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("trm", {}),
        ("trm", {"puzzle_emb_ndim": 64, "puzzle_emb_len": 16}),
        ("trm", {"mlp_t": True}),
        ("trm", {"H_cycles": 2, "L_cycles": 3, "grad_cycles": 5}),
        ("trm", {"chains": 4}),
        ("trm", {"chains": 3, "H_cycles": 3, "L_cycles": 3, "grad_cycles": 5}),
        ("trm_singlez", {}),
        ("trm_hier6", {}),
        ("hrm", {"H_layers": 1, "L_layers": 3, "halt_max_steps": 1}),
    ],
)
def test_operations_of_puzzles_are_those_that_run(arch, changes):
    head = head_of("cfg_pretrain", arch, **{"puzzle_emb_ndim": 0, "puzzle_emb_len": 0} | changes).train()
    inputs = torch.randint(1, VOCAB, (ROWS, LENGTH), dtype=torch.int32)
    batch = {"inputs": inputs, "labels": inputs, "puzzle_identifiers": torch.zeros(ROWS, dtype=torch.int32)}

    def step() -> None:
        head(return_keys=(), carry=head.initial_carry(batch), batch=batch)[1].backward()

    assert training_flops(head.model.inner, ROWS, ROWS * LENGTH) == pytest.approx(counted(step), rel=0.03)


def test_a_convolution_over_the_board_is_counted_too():
    # The forward pass alone: backward, torch counts a depthwise convolution as if every channel met every other.
    side = 7
    options = {"board_conv": 3, "registers": 2, "seq_len": side**2, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
    core = head_of("cfg_pretrain", "trm", **options).model.inner
    context = core.context({"inputs": torch.zeros(ROWS, side**2, dtype=torch.int32)})
    states = torch.randn(ROWS, 2 + side**2, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert pass_flops(core.L_level, ROWS, 2 + side**2) == counted(lambda: core.L_level(states, context))
