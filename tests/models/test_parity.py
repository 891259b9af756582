"""Every architecture equals the reference number by number."""

import numpy as np
import pytest
import torch

from models.attention import CAUSAL, FULL, AttentionMask, attend
from models.ema import WeightAverage
from models.kernels import rms_norm, rotate, swiglu_gate
from models.layers import Attention, AttentionContext, SwiGLU, swiglu_width, trunc_normal
from models.losses.puzzles import softmax_cross_entropy, stablemax_cross_entropy
from models.rotary import RotaryEmbedding
from models.sparse_embedding import CastedSparseEmbedding
from tests.models.parity import CASES, arrays, batch_of, description, load_head, sample

VALUE = {"rtol": 0, "atol": 3e-5}
RETURNED = ("logits", "preds", "q_halt_logits", "q_continue_logits", "inputs", "labels", "puzzle_identifiers")


def run(case: str, mode: str, loss: str = "stablemax"):
    """Yields (t, carry, loss, metrics, outputs, all_halted, head) for the calls that the fixture describes."""
    data, info = arrays(f"models/{case}.npz"), description(f"models/{case}.json")
    head = load_head(case, loss)
    head.train(mode == "train")
    first = batch_of(data, "batch0")
    carry = head.initial_carry(first)
    for t, index in enumerate(data[f"{mode}/batch_index"]):
        if case == "trm_explore" and mode == "train":
            torch.manual_seed(997 + t)
        keys = [*RETURNED, "target_q_continue"] if f"{mode}/target_q_continue" in data else RETURNED
        carry, total, metrics, outputs, all_halted = head(
            return_keys=keys, carry=carry, batch=batch_of(data, f"batch{index}")
        )
        yield t, carry, total, metrics, outputs, all_halted, head, data, info


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_calls_equal_the_reference(case, mode):
    for t, carry, _, _, outputs, all_halted, _, data, info in run(case, mode):
        np.testing.assert_allclose(outputs["logits"], data[f"{mode}/logits"][t], **VALUE)
        for key in ("q_halt_logits", "q_continue_logits", "target_q_continue"):
            if f"{mode}/{key}" in data:
                np.testing.assert_allclose(outputs[key], data[f"{mode}/{key}"][t], **VALUE)
        np.testing.assert_array_equal(outputs["preds"], data[f"{mode}/preds"][t])
        np.testing.assert_array_equal(carry.steps, data[f"{mode}/steps"][t])
        np.testing.assert_array_equal(carry.halted, data[f"{mode}/halted"][t])
        assert bool(all_halted) == bool(data[f"{mode}/all_halted"][t])
        for key in ("inputs", "labels", "puzzle_identifiers"):
            np.testing.assert_array_equal(outputs[key], data[f"{mode}/current_{key}"][t])
        assert list(carry.inner_carry._fields) == info["carry_fields"]
        for field in info["carry_fields"]:
            state = getattr(carry.inner_carry, field)
            np.testing.assert_allclose(sample(state), data[f"{mode}/carry.{field}#sample"][t], **VALUE)
            np.testing.assert_allclose(state.sum(-1), data[f"{mode}/carry.{field}#possum"][t], rtol=0, atol=3e-4)
            np.testing.assert_allclose(state.double().sum(), data[f"{mode}/carry.{field}#sum"][t], rtol=0, atol=5e-3)


@pytest.mark.parametrize("loss", ["stablemax", "softmax"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_metrics_equal_the_reference(case, mode, loss):
    for t, _, total, metrics, _, _, _, data, info in run(case, mode, loss):
        names = info["metric_names"][f"{mode}/{loss}"]
        assert sorted(metrics) == names
        np.testing.assert_allclose(total.detach(), data[f"{mode}/{loss}/loss"][t], **VALUE)
        for name, expected in zip(names, data[f"{mode}/{loss}/metrics"][t], strict=True):
            exact = name in ("count", "exact_accuracy", "q_halt_accuracy", "steps")
            np.testing.assert_allclose(
                metrics[name].double(), expected, rtol=0, atol=0 if exact else 3e-5, err_msg=name
            )


@pytest.mark.parametrize("loss", ["stablemax", "softmax"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference(case, loss):
    _, _, total, _, _, _, head, data, info = next(iter(run(case, "train", loss)))
    (total / 4).backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    assert list(gradients) == info["parameters"]
    if head.model.puzzle_emb is not None:
        gradients["model.inner.puzzle_emb.local_weights"] = head.model.puzzle_emb.local_weights.grad
    checked = 0
    for key, expected in data.items():
        name, _, reduction = key.partition(f"train/step1/{loss}/grad.")[2].partition("#")
        if not name:
            continue
        checked += 1
        grad = gradients[name]
        if reduction == "none":
            assert grad is None
            continue
        reduced = {
            "": lambda g: g.numpy(),
            "sample": sample,
            "norm": lambda g: g.double().norm().numpy(),
            "rowsum": lambda g: g.sum(1).numpy(),
            "colsum": lambda g: g.sum(0).numpy(),
        }[reduction](grad)
        atol = max(2e-6, 1e-4 * float(np.abs(expected).max()))
        np.testing.assert_allclose(reduced, expected, rtol=0, atol=atol, err_msg=key)
    assert checked >= len(info["parameters"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_bfloat16_stays_near_the_reference(mode):
    for t, _, total, metrics, outputs, _, _, data, info in run("trm_attn_bf16", mode):
        np.testing.assert_allclose(outputs["logits"].float(), data[f"{mode}/logits"][t], rtol=0, atol=0.1)
        np.testing.assert_allclose(outputs["q_halt_logits"], data[f"{mode}/q_halt_logits"][t], rtol=0, atol=0.06)
        names = info["metric_names"][f"{mode}/stablemax"]
        expected = dict(zip(names, data[f"{mode}/stablemax/metrics"][t], strict=True))
        np.testing.assert_allclose(metrics["lm_loss"], expected["lm_loss"], rtol=0, atol=0.03)
        np.testing.assert_allclose(total.detach(), data[f"{mode}/stablemax/loss"][t], rtol=0, atol=0.03)


def test_layers_equal_the_reference():
    data = {key: torch.from_numpy(value) for key, value in arrays("layers.npz").items()}
    rope = RotaryEmbedding(8, 9)(None, 9)
    torch.testing.assert_close(rope.cos, data["rope/cos"][:, :4], rtol=0, atol=1e-6)
    for name in ("q", "k"):
        for x, expected in (
            (data[f"rope/{name}"], f"rope/{name}_out"),
            (data[f"rope/{name}"].bfloat16(), f"rope/{name}_out_bf16"),
        ):
            pairs = rotate(x, *rope).float().unflatten(-1, (4, 2))
            torch.testing.assert_close(torch.cat(pairs.unbind(-1), -1), data[expected], rtol=0, atol=1e-6)
    torch.testing.assert_close(rms_norm(data["x"]), data["rms_norm/out"], rtol=0, atol=1e-6)
    torch.testing.assert_close(rms_norm(data["x"].bfloat16()).float(), data["rms_norm/out_bf16"], rtol=0, atol=1e-6)

    attention, mlp = Attention(16, 2), SwiGLU(16, 4)
    for part, layer in (("attention", attention), ("swiglu", mlp)):
        layer.load_state_dict(
            {k.split("/")[1]: v for k, v in data.items() if k.startswith(part) and k.endswith("weight")}
        )
    for mask, tag in ((FULL, "full"), (CAUSAL, "causal")):
        for tables, suffix in ((rope, ""), (None, "_norope")):
            out = attention(data["x"], AttentionContext(tables, mask))
            torch.testing.assert_close(out.detach(), data[f"attention/out_{tag}{suffix}"], rtol=0, atol=1e-6)
    torch.testing.assert_close(mlp(data["x"]).detach(), data["swiglu/out"], rtol=0, atol=1e-6)


def test_swiglu_widths_equal_the_reference():
    for hidden, expansion, inner in description("tables.json")["swiglu_inter"]["rows"]:
        assert swiglu_width(hidden, expansion) == inner


def test_truncated_normal_has_the_wanted_spread():
    torch.manual_seed(0)
    values = trunc_normal(1000, 1000, std=0.5)
    assert abs(values.std().item() - 0.5) < 2e-3
    assert abs(values.mean().item()) < 2e-3
    assert values.abs().max().item() <= 2 * 1.13685 * 0.5 * 1.0001


def test_cross_entropies_equal_float64():
    data = arrays("losses.npz")
    labels = torch.from_numpy(data["ce/labels"])
    for fn, name in ((stablemax_cross_entropy, "stablemax"), (softmax_cross_entropy, "softmax")):
        logits = torch.from_numpy(data["ce/logits"]).requires_grad_()
        loss = fn(logits, labels)
        loss.sum().backward()
        np.testing.assert_allclose(loss.detach(), data[f"ce/{name}"], rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(logits.grad, data[f"ce/{name}_grad"], rtol=1e-5, atol=1e-6)


def test_stablemax_gradient_is_right_on_special_values():
    """The plain two-branch formula is NaN at exactly 1."""
    x = torch.tensor([[1.0, 0.0, -1.0, 1e-30, 3.5, -1e4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: stablemax_cross_entropy(z, torch.tensor([4])), (x + 0.5,))
    stablemax_cross_entropy(x.float(), torch.tensor([0])).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_weight_average_equals_the_reference():
    data = {k: torch.from_numpy(v) for k, v in arrays("optim.npz").items() if k.startswith("ema/")}
    module = torch.nn.Module()
    module.a = torch.nn.Parameter(data["ema/model0.a"].clone())
    module.f = torch.nn.Parameter(data["ema/model0.f"].clone(), requires_grad=False)
    module.register_buffer("buf", data["ema/model0.buf"].clone())
    average = WeightAverage(module, float(data["ema/mu"]))
    for t in (1, 2, 3):
        for name in ("a", "f", "buf"):
            getattr(module, name).data.copy_(data[f"ema/model{t}.{name}"])
        average.update(t)
        torch.testing.assert_close(average.shadow["a"], data[f"ema/shadow{t}.a"], rtol=0, atol=1e-6)
    with average.swapped_in():
        for name in ("a", "f", "buf"):
            torch.testing.assert_close(getattr(module, name).data, data[f"ema/copy.{name}"], rtol=0, atol=1e-6)
    torch.testing.assert_close(module.a.data, data["ema/model3.a"], rtol=0, atol=0)


def test_puzzle_table_lends_rows_only_in_training():
    table = CastedSparseEmbedding(6, 4, 1.0, torch.float32)
    ids = torch.tensor([2, 2, 5])
    assert not table.eval()(ids).requires_grad
    table.train()(ids).sum().backward()
    assert table.local_weights.grad.shape == (3, 4)
    assert not table.weights.requires_grad


def test_small_operations_have_the_gradients_of_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x,))
    assert torch.autograd.gradcheck(swiglu_gate, (x,))
    rope = RotaryEmbedding(8, 3)(None, 3)
    plain = x.detach().float().requires_grad_()
    turned = rotate(plain, *rope)
    weights = torch.randn_like(turned)
    (turned * weights).sum().backward()
    first, second = plain.detach().chunk(2, -1)
    cos, sin = rope.cos[:, None], rope.sin[:, None]
    torch.testing.assert_close(turned[..., 0::2].detach(), first * cos - second * sin)
    torch.testing.assert_close(turned[..., 1::2].detach(), second * cos + first * sin)
    torch.testing.assert_close(plain.grad[..., :4], weights[..., 0::2] * cos + weights[..., 1::2] * sin)
    torch.testing.assert_close(plain.grad[..., 4:], weights[..., 1::2] * cos - weights[..., 0::2] * sin)


@pytest.mark.parametrize("masked", ["full", "causal", "bias"])
def test_attention_in_bfloat16_agrees_with_float32(masked):
    q, k, v = torch.randn(3, 2, 9, 2, 8)
    bias = torch.zeros(2, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
    mask = {"full": FULL, "causal": CAUSAL, "bias": AttentionMask(bias=bias)}[masked]
    half = AttentionMask(mask.is_causal, None if mask.bias is None else mask.bias.bfloat16())
    out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), half)
    torch.testing.assert_close(out.float(), attend(q, k, v, mask), rtol=0, atol=0.03)
