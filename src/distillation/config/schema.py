"""What a distillation is told: the flat options of `configs/train_*.yaml`, checked with every problem reported at once."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from engine.config.schema import ConfigError, parse
from src.distillation.config.option_names import plain
from src.distillation.config.run_options import (
    PARTS,
    DataOptions,
    EvaluationOptions,
    FolderOptions,
    LengthOptions,
    LoggingOptions,
    LossOptions,
    MachineOptions,
    OptimizerOptions,
    SaddleOptions,
    StudentOptions,
    TeacherOptions,
)

Mode = Literal["ce", "direct", "cached", "network"]


class DistillConfig(
    MachineOptions,
    LoggingOptions,
    EvaluationOptions,
    FolderOptions,
    LossOptions,
    TeacherOptions,
    OptimizerOptions,
    LengthOptions,
    DataOptions,
    StudentOptions,
):
    """Options of `python -m src.distillation.scripts.train`."""

    saddle_escape: SaddleOptions = Field(default_factory=lambda: SaddleOptions.model_validate({}))

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
            raise ValueError(f"{wrong[0]!r} is no key=value. Write for example 'hidden_size=64 num_heads=4'")
        return OmegaConf.to_container(OmegaConf.from_dotlist(value.split()))

    @field_validator("init_from_teacher")
    @classmethod
    def _are_parts(cls, parts: list[str]) -> list[str]:
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(f"a student takes over no {', '.join(unknown)}. Choose from {', '.join(PARTS)}")
        return list(dict.fromkeys(parts))

    @field_validator("use_pretokenized_data")
    @classmethod
    def _is_tokenized(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "only true is possible: text is tokenized beforehand, with python data/preprocess_to_parquet.py"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "DistillConfig":
        problems = []
        if self.min_lr > self.learning_rate:
            problems.append(
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}, from which it shall fall. Lower it"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas={self.betas}: expected two numbers from 0 to below 1")
        if set(self.init_from_teacher) - {"embed"} and self.student != "retnet":
            problems.append(
                f"init_from_teacher={','.join(self.init_from_teacher)}: student={self.student} takes embed only"
            )
        if self.mode == "network" and self.init_from_teacher:
            problems.append("init_from_teacher needs the teacher's weights, which a server does not give. Leave it out")
        if self.jsd_beta != 0.5 and self.divergence != "jsd":
            problems.append(f"jsd_beta={self.jsd_beta:g} is for divergence=jsd, found {self.divergence}. Leave it out")
        if self.teacher_kind == "sampled" and self.divergence != "forward_kl":
            problems.append(f"divergence={self.divergence} needs teacher_kind=topk or dense, found sampled")
        if self.teacher_kind != "topk" and self.tail != "bucket":
            problems.append(f"tail={self.tail} is for teacher_kind=topk, found {self.teacher_kind}. Leave it out")
        if self.init_from_teacher and self.teacher_model is None:
            problems.append("init_from_teacher needs teacher_model, a folder or a name of the Hub")
        if self.saddle_escape.interventions_enabled and not self.saddle_escape.enabled:
            problems.append("saddle_escape.interventions_enabled=true needs saddle_escape.enabled=true")
        if any(not 8 <= length <= self.max_seq_length for length in self.eval_niah_lengths):
            problems.append(
                f"eval_niah_lengths={self.eval_niah_lengths}: expected lengths from 8 to max_seq_length={self.max_seq_length}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def check_config(*sources: dict[str, Any]) -> DistillConfig:
    """The config of several sources, of which the later ones win; otherwise ONE error with every problem of all."""
    merged: dict[str, Any] = {}
    problems: list[str] = []
    for source in sources:
        options, wrong = plain(source)
        problems += wrong
        saddle = [
            part for part in (merged.get("saddle_escape"), options.get("saddle_escape")) if isinstance(part, dict)
        ]
        merged |= options
        if len(saddle) == 2:
            merged["saddle_escape"] = saddle[0] | saddle[1]
    config, wrong = parse(DistillConfig, merged)
    if problems or wrong or config is None:
        raise ConfigError([*problems, *wrong])
    return config


def differences(old: dict[str, Any], new: dict[str, Any], but: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Option -> [what it was, what it is], for those that differ."""
    keys = sorted((old.keys() | new.keys()) - set(but))
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}
