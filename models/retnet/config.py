"""The options of a RetNet, and its named sizes."""

from typing import Any, Literal

from pydantic import Field

from models.config import ArchConfig
from models.retnet.retention import CHUNK_SIZE

FIRST_LOGIT_STD = 0.25  # small enough that a fresh model spreads its guess evenly: its loss is ln V

# Named by their parameters with the 128,256 pieces of Llama 3, of which 131 and 148 million are the embedding.
PRESETS: dict[str, dict[str, Any]] = {
    "350M": {"hidden_size": 1024, "num_heads": 8, "H_layers": 13, "tie_embeddings": True},
    "500M": {"hidden_size": 1152, "num_heads": 9, "H_layers": 17, "tie_embeddings": True},
    "tiny": {"hidden_size": 128, "num_heads": 4, "H_layers": 2, "tie_embeddings": True},
}
# What the shared options must be for a network that reads its text once, in order.
FIXED: dict[str, Any] = {
    "H_cycles": 1,
    "L_cycles": 1,
    "L_layers": 0,
    "halt_max_steps": 1,
    "depth_curriculum": [],
    "causal": True,
    "prefix_mask": False,
    "mlp_t": False,
    "puzzle_emb_ndim": 0,
    "pos_encodings": "rope",
    "norm": "pre",
    "latent_init": "embedding",
    "injection": "call",
    "recursion": "unrolled",
}


def preset(variant: str) -> dict[str, Any]:
    """The sizes of a named variant; `vocab_size` and `seq_len` are for the caller to add."""
    if variant not in PRESETS:
        raise ValueError(f"Unknown RetNet variant {variant!r}; known are: {', '.join(PRESETS)}.")
    return dict(PRESETS[variant])


class RetNetConfig(ArchConfig):
    """H_layers counts its blocks; what belongs to recursion is fixed at one pass."""

    reads_once = True

    H_cycles: int = 1
    L_cycles: int = 1
    L_layers: int = 0
    halt_max_steps: int = 1
    causal: bool = True
    norm: Literal["post", "pre"] = "pre"
    latent_init: Literal["learned", "embedding"] = "embedding"
    recursion: Literal["carry", "unrolled"] = "unrolled"
    halt_policy: Literal["learned", "sampled", "fixed"] = "fixed"

    value_expansion: int = Field(2, ge=1, description="size of a value in sizes of a key; 2 in the paper")
    chunk_size: int = Field(CHUNK_SIZE, ge=1, description="positions that are related directly; changes no result")
    gradient_checkpointing: bool = Field(
        False, description="keep only what enters each block and compute the rest again for the backward pass"
    )

    @property
    def embed_scale(self) -> float:
        """A table that may also be the head starts small; what is looked up in it has unit variance all the same."""
        return super().embed_scale / FIRST_LOGIT_STD

    def own_problems(self) -> list[str]:
        problems = [
            f"{key}={getattr(self, key)!r}: a RetNet reads its text once, in order. Set {key}={wanted!r} or leave it out"
            for key, wanted in FIXED.items()
            if getattr(self, key) != wanted
        ]
        if self.hidden_size % self.num_heads:
            problems.append(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        if not self.H_layers:
            problems.append("a RetNet consists of the H network: set H_layers to 1 or more")
        return problems
