"""The options of tuning a teacher."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from engine.config.flags import also
from engine.config.schema import TRACKERS, CollectiveTimeout, Strict, Trackers

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # of a Llama


class TeacherFtConfig(Strict):
    """Options of `scripts/finetune_teacher.py`."""

    headings: ClassVar[dict[str, str]] = {
        "teacher_model": "what is tuned, on what",
        "method": "how",
        "max_steps": "length and batches",
        "optimizer_type": "optimizer and learning rate",
        "eval_interval": "evaluation and the end",
        "save_interval": "checkpoints and results",
        "device": "machine and logging",
    }

    teacher_model: str | None = Field(
        "meta-llama/Llama-3.2-1B", description="folder or Hub name of a causal model; with init_config: none"
    )
    init_config: str | None = Field(
        None, description="config.json of a model to begin with random weights; needs method full"
    )
    tokenizer: str | None = Field(None, description="of the corpus; none: that of teacher_model")
    data_path: str = Field("data/distillation_preprocessed", description="packed corpus with the splits train and val")
    output_dir: str = Field("teacher_adapters/llama-1b-corrected", description="where checkpoints and results go")

    method: Literal["lora", "full"] = Field(
        "lora", description="train small matrices beside the weights, or all weights"
    )
    lora_rank: int = Field(64, ge=1)
    lora_alpha: int = Field(128, ge=1, description="the adapter counts alpha / rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] = Field(PROJECTIONS, min_length=1, description="layers that get an adapter, by name")

    max_steps: int | None = Field(None, ge=1, description="optimizer steps at most; none: as many as the epochs have")
    epochs: int = Field(1, ge=1)
    physical_batch_size: int = Field(2, ge=1, description="rows that go through the model at once, on each rank")
    gradient_accumulation_steps: int = Field(8, ge=1, description="such passes of an optimizer step, which ranks share")

    optimizer_type: Literal["adamw", "adam_atan2"] = "adamw"
    learning_rate: float = Field(1e-4, gt=0, json_schema_extra=also("lr"))
    min_lr: float = Field(1e-5, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)

    eval_interval: int = Field(500, ge=0, description="steps from one evaluation to the next; 0: only at the end")
    eval_samples: int | None = Field(None, ge=1, description="rows of val that are scored; none: all of them")
    patience: int | None = Field(3, ge=1, description="evaluations without improvement before it stops; none: never")
    min_improvement: float = Field(0.001, ge=0, lt=1, description="share of the loss that counts as improvement")

    save_interval: int = Field(500, ge=0, description="steps from one checkpoint to the next; 0: only with evaluations")
    keep_last_n: int | None = Field(3, ge=1, description="checkpoints to keep beside the best; none: all")
    resume_from: str | None = Field(
        None, description="checkpoint to resume, or its run directory", json_schema_extra=also("resume")
    )
    save_merged: bool = Field(True, description="also write the whole model, the adapter merged into it")

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    collective_timeout: CollectiveTimeout = 30
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")
    gradient_checkpointing: bool = Field(True, description="compute activations again instead of keeping them")
    num_workers: int = Field(0, ge=0)
    ram_disk: bool = Field(False, description="read the corpus from a copy in /dev/shm, if there is room for it")
    ram_disk_cleanup: bool = Field(False, description="remove that copy at the end")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    log_interval: int = Field(10, ge=1)
    tracker: Trackers = Field(["auto"], description=TRACKERS)

    @field_validator("target_modules")
    @classmethod
    def _are_names(cls, names: list[str]) -> list[str]:
        if "lm_head" in names:
            raise ValueError("lm_head cannot have an adapter, because the loss reads its plain weights. Leave it out")
        return names

    def problems(self) -> list[str]:
        problems = []
        if self.init_config is not None and self.method != "full":
            problems.append("init_config starts with random weights, which an adapter cannot teach: set method: full")
        if self.init_config is not None and self.tokenizer is None:
            problems.append("init_config brings no tokenizer: set tokenizer to the one that the corpus was made with")
        if self.init_config is not None and self.teacher_model is not None and "teacher_model" in self.model_fields_set:
            problems.append("init_config and teacher_model both say what to begin with: set one of them to null")
        if self.init_config is None and self.teacher_model is None:
            problems.append("teacher_model is none: name a model, or a config.json as init_config")
        if self.min_lr > self.learning_rate:
            problems.append(f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}: lower it")
        if self.method == "full" and not self.save_merged:
            problems.append("method full has no adapter: with save_merged: false nothing would be written")
        if self.ram_disk_cleanup and not self.ram_disk:
            problems.append("ram_disk_cleanup removes the copy that ram_disk makes: set ram_disk, or leave it out")
        return problems

    @property
    def rows_per_step(self) -> int:
        return self.physical_batch_size * self.gradient_accumulation_steps

    @property
    def tokenizer_name(self) -> str:
        name = self.tokenizer or self.teacher_model
        assert name is not None
        return name
