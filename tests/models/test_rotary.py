"""Rotary positions on a board, and the fixed positions before it."""

import pytest
import torch

from models.kernels import rotate
from models.rotary import RotaryEmbedding
from tests.models.small import final_logits, make, make_batch

SIDE = 3
BOARD = {"seq_len": SIDE * SIDE, "pos_encodings": "rope2d", "num_heads": 2}


def likeness(prefix: int = 0) -> torch.Tensor:
    """How a query at each cell (row, column) fits a key at each cell, both of them the same vector everywhere."""
    torch.manual_seed(0)
    query, key = (torch.randn(8).expand(1, prefix + SIDE * SIDE, 1, 8) for _ in range(2))
    rope = RotaryEmbedding(8, prefix + SIDE * SIDE, side=SIDE)(None, prefix + SIDE * SIDE)
    turned_query, turned_key = (rotate(x, rope.cos, rope.sin)[0, prefix:, 0] for x in (query, key))
    return (turned_query @ turned_key.T).view(SIDE, SIDE, SIDE, SIDE)


@pytest.mark.parametrize("prefix", [0, 2])
def test_what_a_cell_sees_of_another_depends_on_rows_and_columns_between_them(prefix):
    fits = likeness(prefix)
    assert fits[0, 0, 1, 2].item() == pytest.approx(fits[1, 0, 2, 2].item(), abs=1e-5)
    assert fits[1, 1, 0, 0].item() == pytest.approx(fits[2, 2, 1, 1].item(), abs=1e-5)
    assert fits[0, 0, 0, 1].item() != pytest.approx(fits[0, 0, 0, 0].item(), abs=1e-3), "columns count"
    one_right, one_down = fits[0, 0, 0, 1].item(), fits[0, 0, 1, 0].item()
    assert abs(one_right - one_down) > 1e-3, "rows and columns turn different dimensions"
    assert fits[0, 2, 1, 0].item() != pytest.approx(fits[0, 0, 0, 1].item(), abs=1e-3), (
        "a line's end is far from the next"
    )


def test_a_model_with_positions_on_the_board_tells_its_cells_apart():
    batch = make_batch(length=SIDE * SIDE)
    batch["inputs"][:] = batch["inputs"][:, :1]  # all cells alike
    batch["inputs"][:, 0] = (batch["inputs"][:, 0] + 1) % 11
    logits = final_logits(make("trm", **BOARD), batch).view(3, SIDE, SIDE, -1)
    assert (logits[:, 0, 1] - logits[:, 1, 0]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("options", [{}, {"puzzle_emb_ndim": 40, "puzzle_emb_len": 2}, {"mlp_t": True}, BOARD])
def test_registers_stand_before_the_tokens_and_are_not_trained(options):
    length = options.get("seq_len", 8)
    model = make("trm", registers=3, **options).train()
    batch = make_batch(length=length)
    carry, outputs = model(model.initial_carry(batch), batch)
    prefix = 3 + options.get("puzzle_emb_len", 0)
    assert carry.inner_carry.z_H.shape[1] == prefix + length and outputs["logits"].shape[1] == length
    outputs["logits"].square().sum().backward()
    assert "inner.registers" in model.state_dict() and "inner.registers" not in dict(model.named_parameters())
    before = final_logits(model, batch)
    model.inner.registers.add_(1)
    assert (final_logits(model, batch) - before).abs().max() > 1e-4, "the tokens see them"
