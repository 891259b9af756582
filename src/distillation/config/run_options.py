"""The options of a distillation, in groups, each with its default and what it does."""

from typing import Any, Literal

from pydantic import Field

from engine.config.schema import Strict

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
PARTS = ("embed", "mlp", "norms", "qkvo")


class StudentOptions(Strict):
    """the student"""

    student: str = Field("retnet", description="retnet, trm_text, or another architecture for text of config/arch")
    model_variant: str | None = Field("350M", description="size of student=retnet: 350M, 500M or tiny")
    student_overrides: dict[str, Any] = Field({}, description="options of the architecture, such as 'hidden_size=64'")
    init_from_teacher: list[str] = Field(
        [], description=f"weights that the student takes over from the teacher at its start: {','.join(PARTS)}"
    )
    max_seq_length: int = Field(4096, ge=2, description="tokens of a row, as the corpus was preprocessed")
    use_bf16: bool = Field(True, description="compute in bfloat16; weights stay float32")
    gradient_checkpointing: bool = Field(False, description="keep less for the backward pass, compute it again")


class DataOptions(Strict):
    """data"""

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
    verify_data: bool = Field(False, description="read every shard once at the start and compare its checksum")


class LengthOptions(Strict):
    """length and batches"""

    max_steps: int = Field(60_000, ge=1, description="optimizer steps")
    physical_batch_size: int = Field(1, ge=1, description="rows that go through student and teacher at once")
    gradient_accumulation_steps: int = Field(256, ge=1, description="such passes of an optimizer step")


class OptimizerOptions(Strict):
    """optimizer and learning rate"""

    optimizer_type: Literal["adamw", "muon_hybrid", "adam_atan2"] = Field(
        "adamw", description="adamw, adam_atan2, or muon_hybrid (muon): Muon for the matrices of the blocks"
    )
    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False, json_schema_extra={"flags": ["--lr"]})
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
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
    min_lr: float = Field(3e-5, ge=0, allow_inf_nan=False, description="where each cosine ends")
    max_bad_steps: int = Field(10, ge=1, description="steps in a row that are not finite before the run stops")


class TeacherOptions(Strict):
    """the teacher"""

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
    teacher_temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of teacher and student alike")
    teacher_url: str = Field("http://localhost:8080", description="of the server; its key is in TEACHER_API_KEY")
    teacher_timeout: float = Field(30.0, gt=0, allow_inf_nan=False, description="seconds")
    teacher_max_retries: int = Field(3, ge=0)
    teacher_concurrency: int = Field(4, ge=1, description="requests at a time")
    cache_logits: bool = Field(False, description="write what the teacher says into cache_dir on the way")
    cache_dir: str = Field("data/teacher_cache", description="folder of the teacher's answers")
    on_missing: Literal["error", "direct"] = Field(
        "error", description="what happens if an answer is not there: stop, or ask the model itself"
    )


class LossOptions(Strict):
    """the loss"""

    distill_alpha: float = Field(0.1, ge=0, le=1, description="share of cross-entropy; the rest is the teacher's")
    divergence: Divergence = Field(
        "forward_kl", description="between teacher and student; --reverse-kl is short for one"
    )
    jsd_beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="of divergence=jsd: towards 0 forward_kl, towards 1 reverse_kl in direction; its size falls towards both",
    )
    tail: Literal["bucket", "renorm", "drop"] = Field(
        "bucket", description="of teacher_kind=topk: what becomes of the mass that the ids leave out"
    )


class FolderOptions(Strict):
    """run folder"""

    output_dir: str = Field("runs/direct_mode", description="checkpoints, metrics.jsonl, train.log, provenance.jsonl")
    run_name: str | None = Field(None, description="in logs; none: the name of output_dir")
    save_interval: int = Field(5000, ge=1, description="optimizer steps from one checkpoint to the next")
    keep_last_n: int = Field(3, ge=1, description="checkpoints to keep beside the best")
    resume_from: str | None = Field(
        None,
        description="go on where this checkpoint stands: a file, step folder or run folder; latest: that of output_dir",
        json_schema_extra={"flags": ["--resume"]},
    )


class EvaluationOptions(Strict):
    """evaluation"""

    eval_interval: int = Field(5000, ge=0, description="optimizer steps from one to the next; 0: never")
    eval_perplexity: bool = Field(True, description="held-out perplexity, and agreement with the teacher")
    eval_perplexity_samples: int = Field(1000, ge=1, description="rows of the held-out split that are read at most")
    eval_niah: bool = Field(False, description="find a needle in a haystack")
    eval_niah_samples: int = Field(20, ge=1, description="haystacks of each length")
    eval_niah_lengths: list[int] = Field([], description="tokens of the haystacks; nothing: a quarter, half, whole row")


class LoggingOptions(Strict):
    """logging"""

    log_interval: int = Field(10, ge=1, description="optimizer steps from one line in train.log to the next")
    use_wandb: bool | None = Field(None, description="log to Weights & Biases; none: if WANDB_API_KEY is set")
    wandb_project: str = "distillation"
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="none: WANDB_MODE, else online with WANDB_API_KEY and offline without"
    )


class MachineOptions(Strict):
    """machine"""

    device: str = Field("auto", description="auto, cuda, cuda:<number>, mps or cpu")
    compile: Literal["auto", True, False] = Field("auto", description="compile the student; auto: on CUDA")
    seed: int = Field(42, ge=0)


class SaddleOptions(Strict):
    """Of the controller that watches for plateaus of the loss, see plateau.py; only interventions change anything."""

    enabled: bool = Field(True, description="watch and log")
    interventions_enabled: bool = Field(False, description="raise the learning rate for a while")
    patience_steps: int = Field(150, ge=1, description="steps without progress that make a plateau")
    loss_improvement_threshold: float = Field(5e-4, gt=0, description="relative improvement that counts as progress")
    grad_norm_threshold: float = Field(
        0.55, ge=0, description="what part above its running median a gradient norm may be at a plateau"
    )
    cooldown_steps: int = Field(250, ge=0, description="steps of rest after an intervention")


GROUPS: tuple[type[Strict], ...] = (
    *(StudentOptions, DataOptions, LengthOptions, OptimizerOptions, TeacherOptions, LossOptions),
    *(FolderOptions, EvaluationOptions, LoggingOptions, MachineOptions),
)
