"""Casted layers: where gradients are added, and products of other sizes that say the same."""

import pytest
import torch

from models import layers
from models.layers import CastedLinear, SwiGLU, weights_cast_once
from tests.models.small import make, make_batch


def test_gradients_of_many_calls_are_added_in_float32():
    torch.manual_seed(0)
    layer = CastedLinear(32, 24)
    inputs = [torch.randn(2, 5, 32).bfloat16() for _ in range(21)]
    slopes = [torch.randn(2, 5, 24).bfloat16() for _ in range(21)]
    with weights_cast_once(layer, torch.bfloat16):
        sum((layer(x) * g).float().sum() for x, g in zip(inputs, slopes, strict=True)).backward()
    each = [(g.flatten(0, 1).T @ x.flatten(0, 1)).double() for x, g in zip(inputs, slopes, strict=True)]
    exact = sum(g.flatten(0, 1).double().T @ x.flatten(0, 1).double() for x, g in zip(inputs, slopes, strict=True))
    torch.testing.assert_close(layer.weight.grad.double(), sum(each), rtol=0, atol=1e-5)
    assert (layer.weight.grad - exact).abs().mean() < 0.02, "what is left is the rounding of each product"


def test_what_is_frozen_gets_no_gradient():
    layer = CastedLinear(8, 8)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 8).bfloat16().requires_grad_()
    with weights_cast_once(layer, torch.bfloat16):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad.float(), layer.weight.bfloat16().float().sum(0).expand(2, 8), rtol=0, atol=0.05)
    assert layer.weight.grad is None


@pytest.mark.parametrize("compiled", [False, True])
def test_sizes_are_filled_up_where_products_want_it(compiled, monkeypatch):
    found = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(layers, "ALIGNED_DEVICES", devices)
        torch.manual_seed(0)
        layer = SwiGLU(17, 1.0)
        x = torch.randn(3, 32, 17, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        with weights_cast_once(layer, torch.bfloat16):
            assert layer.gate_up_proj.working_weight.shape[1] == (24 if devices else 17)
            out = (torch.compile(layer, backend="aot_eager") if compiled else layer)(x)
            out.float().square().sum().backward()
        found.append([out, x.grad, layer.gate_up_proj.weight.grad, layer.down_proj.weight.grad])
    assert found[1][0].shape == (3, 32, 17) and found[1][3].shape == (17, 256)
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=2e-2, atol=2e-2)


def test_a_network_that_mixes_positions_is_the_same_with_sizes_filled_up(monkeypatch):
    model, said = make("trm", mlp_t=True, seq_len=9, forward_dtype="bfloat16"), []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(layers, "ALIGNED_DEVICES", devices)
        batch = make_batch(length=9)
        _, outputs = model(model.initial_carry(batch), batch)
        said.append(outputs["logits"].float())
    torch.testing.assert_close(said[1], said[0], rtol=0, atol=5e-2)


def test_what_a_normed_gate_lets_through_does_not_grow_with_its_weights():
    torch.manual_seed(0)
    layer, x = SwiGLU(16, 4, "gated_norm"), torch.randn(5, 16)
    before = layer(x)
    with torch.no_grad():
        gate, up = layer.gate_up_proj.weight.chunk(2)
        up.mul_(100)
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
    hidden = layer.gate_up_proj(x).double()
    gate, up = hidden.chunk(2, dim=-1)
    normed = gate * up / (gate * up).square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(before, layer.down_proj((gate.sigmoid() * normed).float()), rtol=1e-3, atol=1e-3)
