"""The options that every recursive architecture shares, checked when a model is built."""

import math
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GRAD_CYCLES_PATTERN = r"^(all|last_cycle|\d+->(\d+|all))$"


class ArchConfig(BaseModel):
    """Reference names and defaults; `config/arch/*.yaml` sets them."""

    model_config = ConfigDict(extra="forbid")

    # Given by the data set.
    batch_size: int | None = Field(
        None, description="rows of a call; part of reference configs, shapes follow the batch"
    )
    seq_len: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_puzzle_identifiers: int = Field(1, ge=1)

    # Size.
    hidden_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    expansion: float = Field(4.0, gt=0)
    H_layers: int = Field(0, ge=0, description="blocks of the H network; architectures with one network have none")
    L_layers: int = Field(2, ge=0)
    tie_embeddings: bool = Field(False, description="the output head is the token embedding")

    # Recursion.
    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    grad_cycles: int | str = Field(
        "last_cycle",
        description="network calls of a supervision step, counted from its end, that carry gradient: "
        "last_cycle (the reference), all, a number, or a warm-up such as 2->all",
    )
    latent_init: Literal["learned", "embedding"] = Field(
        "learned",
        description="start of the answer latent: a fixed random vector as in the reference, or the embedded input",
    )
    norm: Literal["post", "pre"] = "post"

    # Positions and attention.
    pos_encodings: Literal["rope", "learned", "none"] = "rope"
    rope_theta: float = Field(10000.0, gt=0)
    causal: bool = False
    mlp_t: bool = Field(False, description="mix positions by an MLP over the sequence axis instead of attention")

    # Puzzle embedding.
    puzzle_emb_ndim: int = Field(0, ge=0)
    puzzle_emb_len: int = Field(0, ge=0, description="positions of the puzzle prefix; 0 takes as many as ndim needs")

    # Halting.
    halt_max_steps: int = Field(ge=1)
    halt_exploration_prob: float = Field(0.0, ge=0, le=1)
    no_ACT_continue: bool = Field(
        True, description="halt on q_halt > 0; otherwise on q_halt > q_continue, which is then trained"
    )

    forward_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"

    @model_validator(mode="after")
    def _fits_together(self) -> "ArchConfig":
        problems = []
        if self.causal and self.mlp_t:
            problems.append(
                "causal=true cannot be honoured with mlp_t=true: an MLP over the sequence sees every position. "
                "Use attention (mlp_t=false) or causal=false"
            )
        if self.num_heads > self.hidden_size:
            problems.append(f"num_heads={self.num_heads} is more than hidden_size={self.hidden_size}. Use fewer heads")
        elif self.pos_encodings == "rope" and not self.mlp_t and (self.hidden_size // self.num_heads) % 2:
            problems.append(
                f"rotary positions need an even head size, found hidden_size {self.hidden_size} // num_heads "
                f"{self.num_heads} = {self.hidden_size // self.num_heads}. Change num_heads or use pos_encodings=learned"
            )
        if self.puzzle_emb_len and not self.puzzle_emb_ndim:
            problems.append(
                f"puzzle_emb_len={self.puzzle_emb_len} needs puzzle_emb_ndim > 0. Set puzzle_emb_len=0 to have no puzzle prefix"
            )
        if self.puzzle_emb_ndim > self.prefix_len * self.hidden_size:
            problems.append(
                f"puzzle_emb_ndim={self.puzzle_emb_ndim} does not fit {self.prefix_len} prefix positions of "
                f"{self.hidden_size}. Raise puzzle_emb_len to {math.ceil(self.puzzle_emb_ndim / self.hidden_size)} or set it to 0"
            )
        if isinstance(self.grad_cycles, str) and not re.match(GRAD_CYCLES_PATTERN, self.grad_cycles):
            problems.append(
                f"grad_cycles={self.grad_cycles!r} is none of: all, last_cycle, a number, a warm-up such as 2->all"
            )
        if isinstance(self.grad_cycles, int) and self.grad_cycles < 1:
            problems.append(f"grad_cycles={self.grad_cycles}: at least one network call must carry gradient")
        problems += self.own_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def own_problems(self) -> list[str]:
        """What an architecture cannot honour, in sentences; overridden by the architectures."""
        return []

    @property
    def prefix_len(self) -> int:
        """Positions of the puzzle prefix."""
        return self.puzzle_emb_len or math.ceil(self.puzzle_emb_ndim / self.hidden_size)

    @property
    def total_len(self) -> int:
        return self.prefix_len + self.seq_len

    @property
    def embed_scale(self) -> float:
        return math.sqrt(self.hidden_size)
