"""The options of every run and those of puzzles: names, defaults, bounds and what they mean."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MAX_ROW = 1 << 24  # positions; no machine holds a batch of longer rows
Trackers = Annotated[
    list[Literal["auto", "wandb", "tensorboard", "trackio"]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
CollectiveTimeout = Annotated[
    float, Field(gt=0, le=10_000, description="minutes that ranks wait for each other in a collective")
]
TRACKERS = "beside metrics.jsonl; auto: wandb where WANDB_API_KEY or WANDB_MODE is set"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def problems(self) -> list[str]:
        """What does not fit together; the message of an error with all of it."""
        return []

    @model_validator(mode="after")
    def _fits_together(self) -> "Strict":
        if problems := self.problems():
            raise ValueError("\n".join(problems))
        return self


class NamedWith(BaseModel):
    """A class of ours by its id (`module@Class`), and options that this class checks itself."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LossConfig(Strict):
    name: str = "losses@ACTLossHead"
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a label's weight that all tokens divide (puzzles)"
    )
    halt_loss_weight: float = Field(
        0.5, ge=0, description="of the halting head's loss beside that of the cells (puzzles)"
    )


class ArchChoice(NamedWith):
    """The architecture; its options are checked by the model's own config class."""

    loss: LossConfig = Field(default_factory=lambda: LossConfig.model_validate({}))


class RunConfig(Strict):
    """Options of every training run, whatever it trains."""

    outputs: ClassVar[tuple[str, ...]] = ()  # what an evaluation can save: the batch, and what the model makes of it

    arch: ArchChoice

    # Length
    global_batch_size: int = Field(ge=1, le=2**20)
    epochs: int = Field(ge=1)
    eval_interval: int | None = Field(
        None, ge=1, description="epochs between evaluations; the end is evaluated too, with null only that"
    )
    min_eval_interval: int = Field(0, ge=0, description="number of the first such interval that is evaluated")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps")

    # Optimization
    optimizer: Literal["adam_atan2", "adam_atan2_cuda", "adamw", "muon"] = Field(
        "adam_atan2",
        description="adam_atan2_cuda is the compiled package; muon: Muon for the matrices of the blocks, AdamW for the rest",
    )
    lr: float = Field(gt=0)
    lr_decay: Literal["cosine", "linear"] = Field("cosine", description="the way from lr down to lr * lr_min_ratio")
    lr_min_ratio: float = Field(1.0, ge=0, le=1)
    lr_warmup_steps: int = Field(0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_aux_lr_scale: float = Field(0.25, gt=0, description="learning rate of what Muon leaves out, as a share of lr")
    muon_aux_weight_decay: float | None = Field(
        None, ge=0, description="weight decay of what Muon leaves out; null: weight_decay"
    )
    weight_decay_embeddings: bool = Field(True, description="false: embeddings of tokens and positions do not decay")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches that one global batch is split into")
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm; null: no clipping")
    max_bad_steps: int = Field(10, ge=1, description="non-finite steps in a row that stop the run")
    ema: bool = False
    ema_rate: float = Field(0.999, ge=0, lt=1, description="on text it grows to this: (1 + step) / (10 + step) at most")
    ema_start: int = Field(0, ge=0, description="the step after which averaging begins")
    freeze_weights: bool = Field(False, description="train the puzzle embedding only")
    puzzle_emb_lr: float = Field(1e-2, ge=0)
    puzzle_emb_weight_decay: float = Field(0.1, ge=0)

    # Where and how
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    compile: Literal["auto", True, False] = Field("auto", description="auto: on CUDA; DISABLE_COMPILE=1 always wins")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    dataloader_workers: int = Field(0, ge=0)
    collective_timeout: CollectiveTimeout = 30

    # Run folder
    project_name: str | None = Field(None, description="null: named after the data set's folder")
    run_name: str | None = Field(None, description="null: the architecture and two words")
    checkpoint_path: str | None = Field(None, description="null: checkpoints/<project_name>/<run_name>")
    checkpoint_every_eval: bool = True
    checkpoint_interval: int | None = Field(None, ge=1, description="also save every so many steps")
    keep_last: int | None = Field(None, ge=1, description="checkpoints to keep beside the best; null: all")
    best_metric: str = Field("lm_loss", description="held-out metric that decides which checkpoint `best` points at")
    load_checkpoint: str | None = Field(None, description="weights to start from")
    resume: Literal[False, True, "auto"] = Field(
        False,
        description="resume from the latest checkpoint of the run directory, if there is one; auto: never of another run",
    )
    eval_only: bool = Field(False, description="evaluate load_checkpoint and stop")
    dry_run: bool = Field(False, description="say what the run would do, and write nothing; also --dry-run")
    eval_save_outputs: list[str] = []
    log_interval: int = Field(10, ge=1, description="steps between looks at the metrics; every step is logged")
    tracker: Trackers = Field(["auto"], description=TRACKERS)

    def default_project_name(self) -> str:
        raise TypeError(f"{type(self).__name__} must name its project")

    @field_validator("project_name", "run_name")
    @classmethod
    def _is_a_folder_name(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or re.search(r"[/\\\x00]", value) or value in (".", "..")):
            raise ValueError(f"must be a plain folder name, found {value!r}")
        return value

    @field_validator("eval_save_outputs")
    @classmethod
    def _are_outputs(cls, names: list[str]) -> list[str]:
        unknown = [name for name in names if name not in cls.outputs]
        if unknown:
            raise ValueError(f"no model returns {', '.join(unknown)}. Choose from {', '.join(cls.outputs)}")
        return names

    @property
    def total_epochs(self) -> int:
        """Those over one corpus after another added up."""
        return self.epochs

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs between two evaluations."""
        return min(self.eval_interval or self.total_epochs, self.total_epochs)

    @property
    def iterations(self) -> int:
        return -(-self.total_epochs // self.epochs_per_iteration)

    def problems(self) -> list[str]:
        problems = []
        if self.dry_run and self.eval_only:
            problems.append(
                "dry_run=true says what a training would do; with eval_only=true there is none. Leave one out"
            )
        if self.global_batch_size % self.gradient_accumulation_steps:
            problems.append(
                f"global_batch_size={self.global_batch_size} cannot be split into "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} equal parts"
            )
        if self.ema_start and not self.ema:
            problems.append(f"ema_start={self.ema_start} changes nothing with ema=false. Set ema=true or leave it out")
        if self.eval_only and not self.load_checkpoint:
            problems.append("eval_only=true needs load_checkpoint=<folder or file>")
        if self.eval_only and self.resume:
            problems.append(f"eval_only=true and resume={str(self.resume).lower()} exclude each other: choose one")
        if self.resume == "auto" and not (self.run_name or self.checkpoint_path):
            problems.append("resume=auto resumes the run of a name: set run_name or checkpoint_path")
        return problems


class EvalDepthConfig(Strict):
    """How deep an evaluation goes."""

    halt_max_steps: int | None = Field(None, ge=1, description="supervision steps; null: arch.halt_max_steps")


class EvalConfig(EvalDepthConfig):
    """How hard held-out puzzles are tried, and on which puzzles the best checkpoint is chosen."""

    rollouts: int = Field(1, ge=1, description="tries at a puzzle, of which `choose` takes one")
    noise: float = Field(0.0, ge=0, description="scale of the noise of all tries but the first")
    disguises: bool = Field(
        False, description="all tries but the first see the puzzle in another disguise, such as with digits renamed"
    )
    choose: Literal["surest", "vote"] = Field(
        "surest", description="the try that is surest of its answer, or the answer that most tries give"
    )
    by_step: bool = Field(
        False, description="also exact accuracy and loss after every supervision step, as depth_1/exact_accuracy"
    )
    validation_split: float = Field(
        0.0, ge=0, lt=1, description="share of the training puzzles that is held out and decides what `best` points at"
    )

    def problems(self) -> list[str]:
        if self.rollouts > 1 and self.by_step:
            return [f"by_step=true follows one try at a puzzle, found rollouts={self.rollouts}. Leave one of them out"]
        if self.rollouts > 1 and not (self.noise or self.disguises):
            return [
                f"rollouts={self.rollouts} would all be alike. Set eval.disguises=true or eval.noise, for example to 0.3, "
                "or eval.rollouts=1"
            ]
        if self.rollouts == 1 and (self.noise or self.disguises):
            given = f"noise={self.noise:g}" if self.noise else "disguises=true"
            return [f"{given} needs several rollouts. Set eval.rollouts, for example to 8, or leave it out"]
        if self.rollouts == 1 and self.choose == "vote":
            return ["choose=vote needs several rollouts. Set eval.rollouts, for example to 8, or leave it out"]
        return []


class PretrainConfig(RunConfig):
    """Options of `pretrain.py`."""

    outputs = ("inputs", "labels", "puzzle_identifiers", "preds", "logits", "q_halt_logits", "q_continue_logits")

    data_paths: list[str] = Field(min_length=1)
    data_paths_test: list[str] = []
    disguises: bool = Field(
        False,
        description="train on every Sudoku or maze in another disguise each time: digits, lines and bands, turns; drawn from seed",
    )
    evaluators: list[NamedWith] = []
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig.model_validate({}))

    def default_project_name(self) -> str:
        return project_name_of(self.data_paths)


def project_name_of(data_paths: list[str]) -> str:
    """The name of the first data set's folder."""
    folder = data_paths[0].rstrip("/").rsplit("/", 1)[-1]
    return f"{folder.capitalize()}-ACT-torch"
