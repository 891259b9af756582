"""Casted layers: where gradients are added, and products of other sizes that say the same."""

import pytest
import torch

from models import layers
from models.layers import BoardConv, CastedLinear, SwiGLU, weights_cast_once
from tests.models.small import every_arch, final_logits, make, make_batch


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


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_convolution_over_the_board_sees_the_cells_around_each_and_nothing_else(prefix):
    side, channels = 5, 4
    layer = BoardConv(channels, 3, side)
    x = torch.randn(2, prefix + side * side, channels)
    changed = x.clone()
    row, column = 1, 4  # at an edge, where the next in memory is on the other side
    changed[:, prefix + row * side + column] += 1
    differs = (layer(changed) != layer(x)).any(-1)
    assert not differs[:, :prefix].any() and torch.equal(layer(x)[:, :prefix], x[:, :prefix])
    near = torch.zeros(side, side, dtype=torch.bool)
    near[row - 1 : row + 2, column - 1 :] = True
    assert torch.equal(differs[:, prefix:].view(2, side, side), near.expand(2, side, side))


@every_arch
@pytest.mark.parametrize("positions", [{"pos_encodings": "rope2d", "registers": 2}, {"mlp_t": True}])
def test_every_architecture_of_boards_can_look_around(arch, positions):
    model = make(
        arch, seq_len=9, board_conv=3, L_cycles=6, H_layers=0 if arch.startswith("trm") else 1, **positions
    ).train()
    batch = make_batch(length=9)
    _, outputs = model(model.initial_carry(batch), batch)
    outputs["logits"].square().sum().backward()
    kernels = {name: p for name, p in model.named_parameters() if name.endswith("around.kernel")}
    assert kernels and all(kernel.grad.abs().max() > 0 for kernel in kernels.values())
    before = final_logits(model, batch)
    for kernel in kernels.values():
        kernel.data.mul_(2)
    assert (final_logits(model, batch) - before).abs().max() > 1e-4


def test_kernels_of_small_boards_serve_larger_ones():
    options = {"board_conv": 3, "pos_encodings": "rope2d"}
    small, large = make("trm", seq_len=9, **options), make("trm", seq_len=16, **options)
    assert all(torch.equal(p, large.state_dict()[name]) for name, p in small.state_dict().items())
