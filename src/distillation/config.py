"""The options of a distillation: names, defaults, bounds and what each does. `configs/train_*.yaml` and flags are read into it.

`python -m src.distillation.scripts.train --help` lists them.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from engine.config.flags import also
from engine.config.schema import MAX_ROW, TRACKERS, CollectiveTimeout, Strict, Trackers

Mode = Literal["ce", "direct", "cached", "network"]
PARTS = ["embed", "mlp", "norms", "qkvo"]  # of a teacher's weights


class SaddleOptions(Strict):
    """Of the controller that watches for plateaus of the loss; only interventions change anything."""

    enabled: bool = Field(True, description="watch and log")
    interventions_enabled: bool = Field(False, description="raise the learning rate for a while")
    patience_steps: int = Field(150, ge=1, description="steps without progress that make a plateau")
    loss_improvement_threshold: float = Field(5e-4, gt=0, description="relative improvement that counts as progress")
    grad_norm_threshold: float = Field(
        0.55, ge=0, description="what part above its running median a gradient norm may be at a plateau"
    )
    cooldown_steps: int = Field(250, ge=0, description="steps of rest after an intervention, or after a mere report")


class TeacherOptions(Strict):
    """Which teacher is asked, and what it tells of a position."""

    pretrain_ce_only: bool = Field(False, description="no teacher: learn from the text alone")
    teacher_mode: Literal["direct", "cached", "network"] = Field(
        "direct", description="direct: a model in this process; cached: answers on disk; network: a server"
    )
    teacher_model: str | None = Field(
        "meta-llama/Llama-3.2-1B-Instruct",
        description="a folder or a name of the Hub; for a server its name there, none: the only one it has",
    )
    teacher_adapter_path: str | None = Field(None, description="folder of a LoRA adapter for it")
    teacher_device: str = Field("auto", description="auto: that of the student")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of its weights")
    teacher_kind: Literal["topk", "sampled", "dense"] = Field(
        "topk", description="what it tells of a position: the likeliest ids, drawn ones, or all"
    )
    teacher_topk: int = Field(64, ge=1, description="how many ids it tells")
    teacher_temperature: float = Field(1.0, gt=0, description="of teacher and student alike")
    tail: Literal["bucket", "renorm", "drop"] = Field(
        "bucket", description="of teacher_kind=topk: what becomes of the mass that the ids leave out"
    )
    teacher_url: str = Field("http://localhost:8080", description="of the server; its key is in TEACHER_API_KEY")
    teacher_timeout: float = Field(30.0, gt=0, description="seconds")
    teacher_max_retries: int = Field(3, ge=0)
    teacher_concurrency: int = Field(4, ge=1, description="requests at a time")
    cache_logits: bool = Field(False, description="write what the teacher says into cache_dir on the way")
    cache_dir: str = Field("data/teacher_cache", min_length=1, description="folder of the teacher's answers")
    on_missing: Literal["error", "direct"] = Field(
        "error", description="what happens if an answer is not there: stop, or ask the model itself"
    )
    seed: int = Field(42, ge=0, le=2**63 - 1, description="of every draw")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which the loss asks for probabilities; 1 is always among them."""
        asked = 1.0 if self.tail == "renorm" else self.teacher_temperature
        return tuple(sorted({1.0, asked}))

    def problems(self) -> list[str]:
        if self.pretrain_ce_only:
            return []
        problems = []
        if self.teacher_mode == "direct" and not self.teacher_model:
            problems.append("teacher_mode=direct needs teacher_model, a folder or a name of the Hub")
        if self.teacher_mode == "cached" and self.cache_logits:
            problems.append(
                "cache_logits=true is for teacher_mode=direct or network, found cached. Leave it out; with "
                "on_missing=direct what is missing is written in any case"
            )
        if self.on_missing == "direct" and (self.teacher_mode != "cached" or not self.teacher_model):
            problems.append("on_missing=direct is for teacher_mode=cached and needs teacher_model, which is then asked")
        if self.teacher_mode != "network":
            return problems
        if self.teacher_kind != "topk":
            problems.append(f"a server tells the likeliest ids only: teacher_kind=topk, found {self.teacher_kind}")
        if self.temperatures != (1.0,):
            problems.append(
                f"a server tells of temperature 1 only, found {self.teacher_temperature:g}. Set teacher_temperature=1, "
                "use tail=renorm, or a teacher in this process"
            )
        if self.teacher_adapter_path:
            problems.append("a server applies its adapters itself: leave out teacher_adapter_path")
        return problems


class DistillConfig(TeacherOptions):
    """Options of `python -m src.distillation.scripts.train`."""

    headings: ClassVar[dict[str, str]] = {
        "pretrain_ce_only": "the teacher",
        "seed": "machine",
        "student": "the student",
        "train_data_path": "data",
        "max_steps": "length and batches",
        "optimizer_type": "optimizer and learning rate",
        "distill_alpha": "the loss",
        "output_dir": "run directory",
        "eval_interval": "evaluation",
        "log_interval": "logging",
    }

    device: str = Field("auto", description="auto, cuda, cuda:<number>, mps or cpu")
    collective_timeout: CollectiveTimeout = 30
    compile: Literal["auto", True, False] = Field("auto", description="compile the student; auto: on CUDA")
    attention: Literal["auto", "sdpa", "flex"] = Field(
        "auto",
        description="of a compiled student other than a RetNet; auto: on CUDA, FlexAttention skips what the mask hides, "
        "if a try shows that it can; sdpa: never",
    )

    student: str = Field("retnet", description="retnet, trm_text, or another architecture for text of config/arch")
    model_variant: str | None = Field("350M", description="size of student=retnet: 350M, 500M or tiny")
    student_overrides: dict[str, Any] = Field({}, description="options of the architecture, such as 'hidden_size=64'")
    init_from_teacher: list[str] = Field(
        [], description=f"weights that the student takes over from the teacher at its start: {','.join(PARTS)}"
    )
    max_seq_length: int = Field(4096, ge=2, le=MAX_ROW, description="tokens of a row, as the corpus was preprocessed")
    use_bf16: bool = Field(True, description="compute in bfloat16; weights stay float32")
    gradient_checkpointing: bool = Field(False, description="keep less for the backward pass, compute it again")

    train_data_path: str = Field("data/distillation_preprocessed", description="folder with manifest.json")
    val_data_path: str | None = Field(
        None, description="another such folder, or the same or none: the documents that this one holds out"
    )
    use_pretokenized_data: bool = Field(True, description="only true: text is tokenized beforehand")
    tokenizer_name: str | None = Field(
        None,
        description="must be that of the corpus; is kept with every checkpoint. none: that of the corpus, not kept",
    )
    num_workers: int = Field(0, ge=0, description="processes that read ahead")
    verify_data: bool = Field(
        False, description="compare every shard's checksum at the start, not when it is opened first"
    )

    max_steps: int = Field(60_000, ge=1, description="optimizer steps")
    physical_batch_size: int = Field(
        1, ge=1, description="rows that go through student and teacher at once, on each rank"
    )
    gradient_accumulation_steps: int = Field(
        256, ge=1, description="such passes of an optimizer step, which ranks share"
    )

    optimizer_type: Literal["adamw", "muon_hybrid", "adam_atan2"] = Field(
        "adamw", description="muon_hybrid (or muon): Muon for the matrices of the blocks, AdamW for the rest"
    )
    learning_rate: float = Field(3e-4, gt=0, json_schema_extra=also("lr"))
    weight_decay: float = Field(0.1, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; none: no clipping")
    betas: tuple[float, float] = Field((0.9, 0.95), description="of AdamW and AdamATan2")
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_aux_lr_scale: float = Field(0.25, gt=0, description="learning rate of what Muon leaves out, as a share")
    warmup_batches: int = Field(
        200, ge=0, description="passes of growing learning rate; fewer than an optimizer step takes are none"
    )
    plateau_batches: int = Field(0, ge=0, description="passes at the full learning rate that follow")
    cosine_t0: int = Field(10_000, ge=1, description="optimizer steps of the first cosine")
    cosine_tmult: int = Field(2, ge=1, description="each cosine is so many times as long as the one before")
    min_lr: float = Field(3e-5, ge=0, description="where each cosine ends")
    max_bad_steps: int = Field(10, ge=1, description="steps in a row that are not finite before the run stops")
    saddle_escape: SaddleOptions = Field(
        SaddleOptions.model_validate({}),
        json_schema_extra=also(enable_saddle_interventions={"enabled": True, "interventions_enabled": True}),
    )

    distill_alpha: float = Field(0.1, ge=0, le=1, description="share of cross-entropy; the rest is the teacher's")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl", description="between teacher and student", json_schema_extra=also(reverse_kl="reverse_kl")
    )
    jsd_beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="of divergence=jsd: towards 0 forward_kl, towards 1 reverse_kl in direction; its size falls towards both",
    )

    output_dir: str = Field("runs/direct_mode", description="checkpoints, metrics.jsonl, train.log, provenance.jsonl")
    replace: bool | None = Field(
        None,
        description="put another run that stands in output_dir aside, to former/<n>; otherwise a new run goes to "
        "output_dir-2, -3, ...; none: only text alone takes the place of a run with a teacher, who continues it there",
    )
    run_name: str | None = Field(
        None, description="in logs; none: the name of output_dir", json_schema_extra=also("wandb_run_name")
    )
    save_interval: int = Field(5000, ge=1, description="optimizer steps from one checkpoint to the next")
    keep_last_n: int = Field(3, ge=1, description="checkpoints to keep beside the best")
    resume_from: str | None = Field(
        None,
        description="checkpoint to resume: a file, step directory or run directory; latest or auto: that of output_dir, if "
        "it has one",
        json_schema_extra=also("resume"),
    )

    eval_interval: int = Field(5000, ge=0, description="optimizer steps from one to the next; 0: never")
    eval_perplexity: bool = Field(True, description="held-out perplexity, and agreement with the teacher")
    eval_perplexity_samples: int = Field(1000, ge=1, description="rows of the held-out split that are read at most")
    eval_niah: bool = Field(False, description="find a needle in a haystack")
    eval_niah_samples: int = Field(20, ge=1, description="haystacks of each length")
    eval_niah_lengths: list[int] = Field([], description="tokens of the haystacks; nothing: a quarter, half, whole row")

    log_interval: int = Field(10, ge=1, description="optimizer steps from one line in train.log to the next")
    tracker: Trackers = Field(["auto"], description=TRACKERS)
    use_wandb: bool | None = Field(
        None,
        description="log to Weights & Biases, or never; none: as tracker says",
        json_schema_extra=also("enable_wandb"),
    )
    wandb_project: str = "distillation"
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="none: WANDB_MODE, else online with WANDB_API_KEY and offline without"
    )

    @property
    def mode(self) -> Mode:
        return "ce" if self.pretrain_ce_only else self.teacher_mode

    @property
    def rows_per_step(self) -> int:
        return self.physical_batch_size * self.gradient_accumulation_steps

    @field_validator("optimizer_type", mode="before")
    @classmethod
    def _muon_is_short(cls, value: Any) -> Any:
        return "muon_hybrid" if value == "muon" else value

    @field_validator("resume_from")
    @classmethod
    def _auto_is_the_latest(cls, value: str | None) -> str | None:
        return "latest" if value == "auto" else value

    @field_validator("compile", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {"true": True, "false": False}.get(str(value).lower(), value)

    @field_validator("init_from_teacher", "eval_niah_lengths", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return value
        return [part for word in words for part in word.replace(",", " ").split()]

    @field_validator("student_overrides", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        from omegaconf import OmegaConf

        wrong = [word for word in value.split() if "=" not in word]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not key=value. Write for example 'hidden_size=64 num_heads=4'")
        return OmegaConf.to_container(OmegaConf.from_dotlist(value.split()))

    @field_validator("init_from_teacher")
    @classmethod
    def _are_parts(cls, parts: list[str]) -> list[str]:
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(f"a teacher has no part {', '.join(unknown)}. Choose from {', '.join(PARTS)}")
        return list(dict.fromkeys(parts))

    @field_validator("use_pretokenized_data")
    @classmethod
    def _is_tokenized(cls, value: bool) -> bool:
        if not value:
            raise ValueError("only true is possible: tokenize beforehand, with python data/preprocess_to_parquet.py")
        return value

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.min_lr > self.learning_rate:
            problems.append(f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}. Lower it")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas={self.betas}: expected two numbers from 0 to below 1")
        if set(self.init_from_teacher) - {"embed"} and self.student != "retnet":
            problems.append(
                f"init_from_teacher={','.join(self.init_from_teacher)}: student={self.student} takes embed only"
            )
        if self.mode == "network" and self.init_from_teacher:
            problems.append("init_from_teacher needs the teacher's weights, which a server does not give. Leave it out")
        if self.init_from_teacher and self.teacher_model is None:
            problems.append("init_from_teacher needs teacher_model, a folder or a name of the Hub")
        if self.jsd_beta != 0.5 and self.divergence != "jsd":
            problems.append(f"jsd_beta={self.jsd_beta:g} is for divergence=jsd, found {self.divergence}. Leave it out")
        if self.teacher_kind == "sampled" and self.divergence != "forward_kl":
            problems.append(f"divergence={self.divergence} needs teacher_kind=topk or dense, found sampled")
        if self.teacher_kind != "topk" and self.tail != "bucket":
            problems.append(f"tail={self.tail} is for teacher_kind=topk, found {self.teacher_kind}. Leave it out")
        if self.saddle_escape.interventions_enabled and not self.saddle_escape.enabled:
            problems.append("saddle_escape.interventions_enabled=true needs saddle_escape.enabled=true")
        if any(not 8 <= length <= self.max_seq_length for length in self.eval_niah_lengths):
            problems.append(
                f"eval_niah_lengths={self.eval_niah_lengths}: expected lengths from 8 to max_seq_length={self.max_seq_length}"
            )
        return problems
