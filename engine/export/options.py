"""What `scripts/export.py` takes."""

import re
from dataclasses import dataclass
from typing import Literal

from engine.config.command_line import Bounded, flag, part
from engine.generate.options import OpenOptions

Format = Literal["auto", "hf", "trm"]


@dataclass(frozen=True)
class ExportOptions(Bounded):
    """Which checkpoint leaves, where to, and in what form."""

    opening: OpenOptions = part(
        OpenOptions(newest=True),
        only=["checkpoint", "tokenizer_path"],
        checkpoint={"required": True, "help": "step or run folder, file, or owner/name on the Hub"},
    )
    output: str = flag("", "a directory that does not exist yet, or is empty", required=True, metavar="DIR")
    depth: int | None = flag(None, "supervision steps of every token; default: as trained", at_least=1, type=int)
    format: Format = flag(
        "auto",
        "hf: a class of transformers, or nothing; trm: our own; auto: the class where there is one",
        choices=["auto", "hf", "trm"],
    )
    push: str | None = flag(None, "also to this repository of the Hub; HF_TOKEN must allow it", metavar="OWNER/NAME")
    private: bool = flag(False, "a repository that --push makes is private", action="store_true")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
            raise ValueError(f"--push {self.push}: expected owner/name.")
