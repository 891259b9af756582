"""Access to the golden numbers of the reference implementation (see tests/fixtures/parity)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.losses.puzzles import ACTLossHead

PARITY = Path(__file__).parent.parent / "fixtures" / "parity"
LOSS_TYPES = {"stablemax": "stablemax_cross_entropy", "softmax": "softmax_cross_entropy"}
CASES = [
    "trm_attn",
    "trm_mlp_t",
    "trm_puzzle_emb",
    "trm_learned_pos",
    "trm_act_continue",
    "trm_explore",
    "trm_singlez",
    "trm_hier6",
    "hrm",
    "transformers_baseline",
]


def arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / path, allow_pickle=False) as data:
        return dict(data)


def description(path: str) -> dict[str, Any]:
    return json.loads((PARITY / path).read_text())


def batch_of(data: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(data[f"{prefix}/{key}"]) for key in ("inputs", "labels", "puzzle_identifiers")}


def load_head(case: str, loss: str = "stablemax", **overrides: Any) -> ACTLossHead:
    """The reference's weights in our model, loaded strictly."""
    from engine.config.registry import load_model_class

    info = description(f"models/{case}.json")
    head = ACTLossHead(load_model_class(info["arch"])(info["config"] | overrides), loss_type=LOSS_TYPES[loss])
    state: dict[str, torch.Tensor] = {}
    for file in info["state_files"]:
        state |= {key: torch.from_numpy(value) for key, value in arrays(f"models/{file}").items()}
    head.load_state_dict(state, strict=True)
    return head


def sample(tensor: torch.Tensor, count: int = 256) -> np.ndarray:
    flat = tensor.detach().float().reshape(-1)
    return flat[:: -(-flat.numel() // count)].numpy()
