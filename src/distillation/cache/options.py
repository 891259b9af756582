"""The options of `scripts/cache_teacher_logits.py`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from engine.config.schema import Strict
from src.distillation.config import TeacherOptions


class CacheOptions(Strict):
    """Which teacher is asked about which rows, and how its answers are kept."""

    data_path: Path = Field(description="a packed corpus, of data/preprocess_to_parquet.py")
    output_dir: Path = Field(description="directory of the shards and cache.json")

    teacher_model: str | None = Field(
        None, description="a folder or a name of the Hub; with teacher_url its name there (none: its only one)"
    )
    adapter_path: str | None = Field(None, description="folder of a LoRA adapter for the model")
    device: str = Field("auto", description="of the model: auto, cuda, cuda:<number>, mps or cpu")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the model's weights")
    teacher_url: str | None = Field(
        None, description="a server of prompt log-probabilities such as vLLM's, instead of a model"
    )
    api_key: str | None = Field(
        None, repr=False, description="of the server; safer in the environment as TEACHER_API_KEY"
    )
    timeout: float = Field(60.0, gt=0, description="seconds of a request")
    max_retries: int = Field(5, ge=0, description="of a request")
    workers: int = Field(4, ge=1, description="requests at a time")

    kind: Literal["topk", "sampled", "dense"] = Field(
        "topk", description="the likeliest ids of a position, drawn ones, or all"
    )
    topk: int = Field(64, ge=1, description="how many ids of a position")
    seed: int = Field(42, ge=0, description="of kind sampled")
    temperature: list[Annotated[float, Field(gt=0)]] = Field([], description="that training may ask for beside 1")
    value_dtype: Literal["fp16", "u8"] = Field("fp16", description="u8 takes less room, at ten times the (small) error")

    batch_size: int = Field(8, ge=1, description="rows that are asked about at once")
    shard_size: int | None = Field(
        None,
        ge=1,
        description="rows of a shard (none: what fits a fixed size); memory follows it, and what an interruption costs",
    )
    split: Literal["train", "val", "both"] = "both"
    max_sequences: int | None = Field(None, ge=1, description="no more rows than that; none: all")
    resume: bool = Field(True, description="continue a cache that is there; --no-resume refuses one")
    verify: bool = Field(False, description="only read every shard of the cache and check it")

    def problems(self) -> list[str]:
        problems = []
        given = self.model_fields_set
        if not self.verify and not (self.teacher_model or self.teacher_url):
            problems.append("teacher_model or teacher_url is needed: give --teacher-model or --teacher-url")
        if self.teacher_url and {"device", "dtype"} & given:
            problems.append("device and dtype are for a model in this process, not for teacher_url. Leave them out")
        if not self.teacher_url and {"api_key", "timeout", "max_retries", "workers"} & given:
            problems.append("api_key, timeout, max_retries and workers need teacher_url. Leave them out")
        if self.teacher_url and (self.kind != "topk" or self.adapter_path or {*self.temperature} - {1.0}):
            problems.append(
                f"a server names the likeliest ids at temperature 1 and applies adapters itself, found kind={self.kind}, "
                f"temperature={self.temperature}, adapter_path={self.adapter_path}. Leave them out"
            )
        return problems

    def teacher(self) -> TeacherOptions:
        """The same as a training would have them."""
        return TeacherOptions.model_validate(
            {
                "teacher_mode": "network" if self.teacher_url else "direct",
                "teacher_model": self.teacher_model,
                "teacher_adapter_path": self.adapter_path,
                "teacher_device": self.device,
                "teacher_dtype": self.dtype,
                "teacher_kind": self.kind,
                "teacher_topk": self.topk,
                "teacher_temperature": max([1.0, *self.temperature], key=lambda temperature: abs(temperature - 1)),
                "teacher_url": self.teacher_url or "",
                "teacher_timeout": self.timeout,
                "teacher_max_retries": self.max_retries,
                "teacher_concurrency": self.workers,
                "seed": self.seed,
            }
        )
