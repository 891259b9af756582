"""Small models of every architecture, and batches for them."""

from typing import Any

import pytest
import torch

from engine.config.registry import load_model_class
from models.act import ActModel

ARCHS = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "trm_singlez": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "recursive_reasoning.transformers_baseline@Model_ACTV2",
}
ROWS, LENGTH, VOCAB, WIDTH = 3, 8, 11, 32
PREFIX = {"puzzle_emb_ndim": 40, "puzzle_emb_len": 2}
every_arch = pytest.mark.parametrize("arch", ARCHS)


def make(arch: str, **options: Any) -> ActModel:
    """A model that wants everything: heads and puzzle table are not at their zeros."""
    torch.manual_seed(1)
    config = {
        **{"seq_len": LENGTH, "vocab_size": VOCAB, "num_puzzle_identifiers": 5, "hidden_size": WIDTH, "num_heads": 2},
        **{"H_layers": 1, "L_layers": 1, "H_cycles": 2, "L_cycles": 2, "halt_max_steps": 3, "forward_dtype": "float32"},
    }
    model = load_model_class(ARCHS[arch])(config | options)
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.02)
    torch.nn.init.zeros_(model.inner.q_head.bias)
    if model.puzzle_emb is not None:
        torch.nn.init.normal_(model.puzzle_emb.weights)
    return model


def make_batch(seed: int = 0, rows: int = ROWS, length: int = LENGTH) -> dict[str, torch.Tensor]:
    draw = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.int32}
    return {
        "inputs": torch.randint(0, VOCAB, (rows, length), **draw),
        "labels": torch.randint(0, VOCAB, (rows, length), **draw),
        "puzzle_identifiers": torch.randint(0, 5, (rows,), **draw),
    }


@torch.no_grad()
def final_logits(model: ActModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits after all supervision steps."""
    carry = model.eval().initial_carry(batch)
    while True:
        carry, outputs = model(carry, batch)
        if carry.halted.all():
            return outputs["logits"]
