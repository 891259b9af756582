"""The options that every recursive architecture shares, checked when a model is built."""

import math
import re
from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

GRAD_CYCLES_PATTERN = r"^(all|half|last_cycle|\d+->(\d+|all))$"


class DepthStage(BaseModel):
    """Part of a run with its own depth."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    until: float = Field(gt=0, lt=1, description="fraction of the run at which the stage ends")
    H_cycles: int | None = Field(None, ge=1)
    L_cycles: int | None = Field(None, ge=1)
    halt_max_steps: int | None = Field(None, ge=1)


class Depth(NamedTuple):
    """How deep the recursion goes at one moment of a run."""

    H_cycles: int
    L_cycles: int
    max_steps: int
    grad_cycles: int | str


class ArchConfig(BaseModel):
    """Reference names and defaults; `config/arch/*.yaml` sets them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    reads_once: ClassVar[bool] = False  # has no further supervision steps that an evaluation could take

    # Given by the data set.
    batch_size: int | None = Field(None, description="part of reference configs; shapes follow the batch")
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
        description="network calls of a supervision step, counted from its end, that carry gradient: last_cycle (the "
        "reference), half, all, a number, or a warm-up such as 2->all; with supervise=last of all steps together",
    )
    latent_init: Literal["learned", "embedding"] = Field(
        "learned",
        description="start of the answer: a fixed random vector, or the embedded input",
    )
    injection: Literal["call", "start"] = Field(
        "call", description="where the embedded input enters: at every network call, or in the first answer alone"
    )
    norm: Literal["post", "pre"] = "post"
    feed_forward: Literal["swiglu", "gated_norm"] = Field(
        "swiglu", description="gated_norm: sigmoid(gate) * norm(gate * value), which suits optimizer=muon"
    )

    supervise: Literal["step", "cycle", "last"] = Field(
        "step",
        description="where the loss is taken: after every step, after every H cycle with gradient, or after the last step",
    )
    depth_curriculum: list[DepthStage] = Field(
        [], description="shallower recursion early in training, in stages; then the full one"
    )

    # Text.
    recursion: Literal["carry", "unrolled"] = Field(
        "carry",
        description="supervision steps of an optimizer step: one of a lasting carry, or all",
    )
    halt_policy: Literal["learned", "sampled", "fixed"] = Field("learned", description="what decides the depth")
    halt_mean_steps: float = Field(4.0, ge=1, description="mean depth of halt_policy=sampled")
    detach_between_steps: bool = Field(True, description="no gradient into the supervision step before")
    halt_delta: float = Field(0.01, ge=0, description="a step that lowers the loss by no more may be left out")
    prefix_mask: bool = Field(False, description="the prompt sees itself both ways, the answer stays causal")

    # Positions and attention.
    pos_encodings: Literal["rope", "rope2d", "learned", "none"] = Field(
        "rope", description="rope2d: rotary by row and column of a square board"
    )
    rope_theta: float = Field(10000.0, gt=0)
    causal: bool = False
    mlp_t: bool = Field(False, description="mix positions by an MLP over the sequence axis instead of attention")

    board_conv: int = Field(
        0,
        ge=0,
        description="cells across a depthwise convolution over a square board in every feed-forward layer; 0 has none",
    )

    # Puzzle embedding.
    puzzle_emb_ndim: int = Field(0, ge=0)
    puzzle_emb_len: int = Field(0, ge=0, description="positions of the puzzle prefix; 0 takes as many as ndim needs")

    registers: int = Field(
        0, ge=0, le=1024, description="fixed random positions before the tokens, at which attention keeps what it needs"
    )

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
            problems.append("causal=true and mlp_t=true exclude each other: an MLP sees every position. Choose one")
        if self.num_heads > self.hidden_size:
            problems.append(f"num_heads={self.num_heads} is more than hidden_size={self.hidden_size}. Use fewer heads")
        elif self.pos_encodings == "rope" and not self.mlp_t and (self.hidden_size // self.num_heads) % 2:
            problems.append(
                f"rotary positions need an even head size, found hidden_size {self.hidden_size} // num_heads "
                f"{self.num_heads} = {self.hidden_size // self.num_heads}. Change num_heads or use pos_encodings=learned"
            )
        problems += self._problems_of_board()
        if self.registers and self.causal:
            problems.append(f"registers={self.registers}: they are for puzzles, not for causal models. Set registers=0")
        if self.puzzle_emb_len and not self.puzzle_emb_ndim:
            problems.append(f"puzzle_emb_len={self.puzzle_emb_len} needs puzzle_emb_ndim > 0. Set puzzle_emb_len=0")
        if self.puzzle_emb_ndim > self.puzzle_len * self.hidden_size:
            problems.append(
                f"puzzle_emb_ndim={self.puzzle_emb_ndim} does not fit {self.puzzle_len} prefix positions of "
                f"{self.hidden_size}. Raise puzzle_emb_len to {math.ceil(self.puzzle_emb_ndim / self.hidden_size)} or set it to 0"
            )
        if isinstance(self.grad_cycles, str) and not re.match(GRAD_CYCLES_PATTERN, self.grad_cycles):
            problems.append(
                f"grad_cycles={self.grad_cycles!r}: expected all, half, last_cycle, a number, or such as 2->all"
            )
        elif any(int(number) < 1 for number in re.findall(r"-?\d+", str(self.grad_cycles).replace("->", " "))):
            problems.append(f"grad_cycles={self.grad_cycles!r}: at least one network call must carry gradient")
        if [stage.until for stage in self.depth_curriculum] != sorted({stage.until for stage in self.depth_curriculum}):
            problems.append("depth_curriculum: its stages must end in rising order (until: 0.3, then until: 0.6)")
        if self.supervise == "last" and (self.detach_between_steps or self.recursion == "carry"):
            problems.append(
                "supervise=last needs the gradient of the last step in the steps before it. Set "
                "detach_between_steps=false and recursion=unrolled; grad_cycles says how far back it reaches"
            )
        if self.injection == "start" and self.recursion == "carry":
            problems.append("injection=start feeds the input once, to unrolled recursion. Set recursion=unrolled")
        if self.prefix_mask and not self.causal:
            problems.append("prefix_mask=true needs causal=true: it only opens the prompt of a causal model")
        problems += self.own_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_board(self) -> list[str]:
        problems = []
        wanting = {"pos_encodings=rope2d": "pos_encodings=rope"} if self.pos_encodings == "rope2d" else {}
        if self.board_conv:
            wanting[f"board_conv={self.board_conv}"] = "board_conv=0"
        found = "causal=true" if self.causal else f"{self.seq_len} cells"
        if self.causal or self.side**2 != self.seq_len:
            for option, instead in wanting.items():
                problems.append(f"{option} needs a square board, found {found}. Use {instead}")
        if self.board_conv and self.board_conv % 2 == 0:
            problems.append(f"board_conv={self.board_conv} has no cell in its middle. Use an odd number, such as 3")
        if self.pos_encodings != "rope2d":
            return problems
        if self.mlp_t:
            problems.append(
                "pos_encodings=rope2d and mlp_t=true exclude each other: an MLP knows its cells. Choose one"
            )
        elif (self.hidden_size // self.num_heads) % 4:
            problems.append(
                f"pos_encodings=rope2d needs a head size that 4 divides, found hidden_size {self.hidden_size} // num_heads "
                f"{self.num_heads} = {self.hidden_size // self.num_heads}. Change num_heads"
            )
        return problems

    def own_problems(self) -> list[str]:
        """What an architecture cannot honour, in sentences; overridden by the architectures."""
        return []

    def depth_at(self, progress: float) -> Depth:
        """The depth after this fraction of the run; 1 is the full one, as for evaluation."""
        stage = next((s for s in self.depth_curriculum if progress < s.until), None)
        wanted: dict[str, int | None] = stage.model_dump(exclude={"until"}) if stage else {}
        return Depth(
            H_cycles=wanted.get("H_cycles") or self.H_cycles,
            L_cycles=wanted.get("L_cycles") or self.L_cycles,
            max_steps=min(wanted.get("halt_max_steps") or self.halt_max_steps, self.halt_max_steps),
            grad_cycles=self._grad_cycles_at(progress),
        )

    def _grad_cycles_at(self, progress: float) -> int | str:
        """`a->b` grows from a to b calls over the first half of the run."""
        if isinstance(self.grad_cycles, int) or "->" not in self.grad_cycles:
            return self.grad_cycles
        first, last = self.grad_cycles.split("->")
        whole = self.H_cycles * (self.L_cycles + 1)
        end = whole if last == "all" else int(last)
        grown = int(first) + (end - int(first)) * min(1.0, 2 * progress)
        return round(grown)

    @property
    def puzzle_len(self) -> int:
        """Positions of the puzzle embedding."""
        return self.puzzle_emb_len or math.ceil(self.puzzle_emb_ndim / self.hidden_size)

    @property
    def prefix_len(self) -> int:
        """Positions before the tokens."""
        return self.puzzle_len + self.registers

    @property
    def side(self) -> int:
        """Cells across a square board."""
        return math.isqrt(self.seq_len)

    @property
    def total_len(self) -> int:
        return self.prefix_len + self.seq_len

    @property
    def embed_scale(self) -> float:
        return math.sqrt(self.hidden_size)
