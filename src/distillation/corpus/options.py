"""The options of `data/preprocess_to_parquet.py`."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from engine.config.schema import MAX_ROW, Strict

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
PART = re.compile(r"(\d+)/(\d+)")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)


class PreprocessOptions(Strict):
    """Which files become a packed corpus, and what its rows look like."""

    input: Path = Field(description="a folder of *.jsonl, *.jsonl.gz, *.jsonl.zst, or one file")
    output: Path = Field(description="directory of the shards and manifest.json")
    recursive: bool = Field(False, description="also the subfolders of the input")
    tokenizer: str = Field(
        "meta-llama/Llama-3.2-1B",
        description="a folder with tokenizer.json, a file, a SentencePiece model, or a name of the Hub",
    )
    max_seq_length: int = Field(8192, ge=2, le=MAX_ROW, description="tokens of a row")
    shard_size: str = Field(
        "64M", description="about how large a shard gets: a number of MiB, or with K, M or G; memory follows it"
    )
    val_fraction: float = Field(
        0.01, ge=0, lt=1, description="of documents, by a hash of their text, that go into the split val"
    )
    skip_existing: bool = Field(False, description="keep files that are done and have not changed")
    force: bool = Field(False, description="make everything again")
    num_workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="processes, where that saves time; the result is the same with any number",
    )

    part: str | None = Field(
        None,
        description="i/n: the i-th of n parts of the files only, into <output>-parts, beside other parts that run elsewhere",
    )
    join: bool = Field(False, description="make the corpus of the parts in <output>-parts, the same as without parts")

    @field_validator("part")
    @classmethod
    def _is_one_of_some(cls, value: str | None) -> str | None:
        found = None if value is None else PART.fullmatch(value)
        if value is not None and not (found and 1 <= int(found[1]) <= int(found[2])):
            raise ValueError(f"expected i/n with i from 1 to n, such as 3/8, found {value!r}")
        return value

    @field_validator("shard_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: Any) -> str:
        found = SIZE.fullmatch(str(value))
        if not found or float(found[1]) <= 0:
            raise ValueError(f"expected a size such as 64, 64M or 1G (MiB where no unit is given), found {value!r}")
        return str(value)

    def problems(self) -> list[str]:
        pairs = [("skip_existing", "force"), ("part", "join")]
        both = [pair for pair in pairs if all(getattr(self, name) for name in pair)]
        return [f"{one} and {other} exclude each other. Give one of them" for one, other in both]

    @property
    def part_numbers(self) -> tuple[int, int] | None:
        """i and n of `part`."""
        if self.part is None:
            return None
        number, _, of = self.part.partition("/")
        return int(number), int(of)

    @property
    def shard_bytes(self) -> int:
        found = SIZE.fullmatch(self.shard_size)
        assert found is not None
        return int(float(found[1]) * UNITS[found[2].upper() or "M"])
