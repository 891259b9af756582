"""The options of an evaluation outside of a run, beside those of the distillation."""

from typing import ClassVar, Literal

from pydantic import Field

from src.distillation.config import DistillConfig


class NeedleConfig(DistillConfig):
    """Options of `python -m src.distillation.evaluation.needle`."""

    headings: ClassVar[dict[str, str]] = DistillConfig.headings | {"checkpoint": "what is evaluated"}

    checkpoint: str | None = Field(
        None,
        description="its run's options count where none are given; none: the latest of output_dir, else a fresh student",
    )


class PerplexityConfig(NeedleConfig):
    """Options of `python -m src.distillation.evaluation.perplexity`."""

    split: Literal["train", "val"] = Field("val", description="val: what is held out")
    with_teacher: bool = Field(False, description="also divergence and agreement with the teacher")
    rows: int | None = Field(None, ge=1, description="how many rows are read at most; none: all")
