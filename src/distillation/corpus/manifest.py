"""The manifest of a packed corpus: what its shards hold, and of which tokenizer, length and sources they were made."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dataset.files.disk import write_file
from dataset.files.json_file import read_model
from dataset.tokenization.protocol import Tokenizer
from dataset.tokenization.tokenizer_json import JsonTokenizer

MANIFEST_FILE = "manifest.json"

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
RowRange = tuple[int, int, str]  # the first row id of a shard, how many rows it has, its SHA-256: what is in these rows

Facts = TypeVar("Facts", bound="Record")


class Record(BaseModel):
    """Facts that are kept in a JSON file beside the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerFacts(Record):
    name: str
    sha256: str  # of what every id stands for: the same for a copy of the tokenizer elsewhere
    vocab_size: int = Field(ge=1)
    bos_id: int | None
    eos_id: int
    pad_id: int  # fills rows up; whether a place is padding says `document_lengths`, never this id

    def in_words(self) -> str:
        return f"{self.name} (SHA-256 {self.sha256[:12]}, {self.vocab_size} ids)"


def tokenizer_facts(name: str, tokenizer: Tokenizer) -> TokenizerFacts:
    """What a manifest keeps of a tokenizer; a path is cut to its last part, which is the same on every machine."""
    if isinstance(tokenizer, JsonTokenizer):
        pieces = tokenizer.pieces()
    else:
        pieces = [tokenizer.piece_bytes(index).hex() for index in range(tokenizer.vocab_size)]
    return TokenizerFacts(
        name=Path(name).resolve().name if Path(name).exists() else name,
        sha256=pieces_sha256(pieces, tokenizer.bos_id, tokenizer.eos_id),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )


def pieces_sha256(pieces: Sequence[str], bos_id: int | None, eos_id: int) -> str:
    """Of what every id stands for."""
    return hashlib.sha256(json.dumps([pieces, bos_id, eos_id]).encode()).hexdigest()


class Shard(Record):
    """One parquet file; its rows are numbered from `first_row_id`."""

    file: str  # below the folder of the manifest
    source: str
    first_row_id: int = Field(ge=0)
    rows: int = Field(ge=1)
    documents: int = Field(ge=1)  # a document that was cut counts as its pieces
    tokens: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str


class Source(Record):
    """One file of JSON lines that is in the shards."""

    path: str  # below the input folder
    sha256: str
    bytes: int
    documents: int
    tokens: int
    skipped: dict[str, int]  # records by the reason why they are in no row
    repository: str | None = None
    license: str | None = None  # if the download left a note of it


class SplitFacts(Record):
    rows: int
    documents: int
    tokens: int
    shards: list[Shard]


class Manifest(Record):
    version: Literal[1] = 1
    tokenizer: TokenizerFacts
    max_seq_length: int = Field(ge=2)
    val_fraction: float = Field(ge=0, lt=1)  # of documents, chosen by a hash of their text
    next_row_id: int = Field(default=0, ge=0)  # a number is never given twice
    sources: list[Source] = []
    splits: dict[Split, SplitFacts] = {}

    @property
    def shards(self) -> list[Shard]:
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def row_ranges(self) -> list[RowRange]:
        return [(shard.first_row_id, shard.rows, shard.sha256) for shard in self.shards]

    def row_ids(self, split: Split) -> NDArray[np.int64]:
        shards = self.splits[split].shards if split in self.splits else []
        ranges = [np.arange(shard.first_row_id, shard.first_row_id + shard.rows) for shard in shards]
        return np.concatenate([np.zeros(0, dtype=np.int64), *ranges])

    @property
    def fingerprint(self) -> str:
        """Changes with every token of every row."""
        facts = [self.tokenizer.sha256, self.max_seq_length, *self.row_ranges]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def with_first_sources(self, number: int) -> "Manifest":
        """This corpus as it was when it had so many sources, if none has been replaced since."""
        paths = {source.path for source in self.sources[:number]}
        splits = {
            name: facts.model_copy(update={"shards": [shard for shard in facts.shards if shard.source in paths]})
            for name, facts in self.splits.items()
        }
        return self.model_copy(update={"splits": splits})

    def source(self, path: str) -> Source | None:
        return next((source for source in self.sources if source.path == path), None)

    def with_source(self, source: Source, shards: dict[Split, list[Shard]]) -> "Manifest":
        """This corpus and one source more, in the place of the source of that path."""
        others = [known for known in self.sources if known.path != source.path]
        splits, next_row_id = {}, self.next_row_id
        for split, added in shards.items():
            known = self.splits[split].shards if split in self.splits else []
            now = [shard for shard in known if shard.source != source.path] + added
            splits[split] = SplitFacts(
                rows=sum(shard.rows for shard in now),
                documents=sum(shard.documents for shard in now),
                tokens=sum(shard.tokens for shard in now),
                shards=now,
            )
            next_row_id = max([next_row_id, *(shard.first_row_id + shard.rows for shard in added)])
        return self.model_copy(update={"sources": [*others, source], "splits": splits, "next_row_id": next_row_id})

    def check_made_for(self, where: Path, tokenizer: TokenizerFacts | None, max_seq_length: int | None) -> None:
        """Refuse rows of another length, or ids that stand for other pieces of text."""
        problems = []
        if max_seq_length not in (None, self.max_seq_length):
            problems.append(f"rows of {self.max_seq_length} tokens, expected {max_seq_length} (max_seq_length)")
        if tokenizer is not None and tokenizer.sha256 != self.tokenizer.sha256:
            problems.append(f"ids of the tokenizer {self.tokenizer.in_words()}, expected {tokenizer.in_words()}")
        if problems:
            raise ValueError(
                f"{where} holds {' and '.join(problems)}. Use the same tokenizer and length, preprocess into another "
                "folder, or make everything again with --force."
            )

    def are_files_in(self, folder: Path, source: str | None = None) -> bool:
        """Whether all shards, or those of one source, are in a folder with their sizes."""
        files = [(folder / shard.file, shard.bytes) for shard in self.shards if source in (None, shard.source)]
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    def save(self, folder: Path) -> None:
        write_file(folder / MANIFEST_FILE, self.model_dump_json(indent=2) + "\n")


def load_manifest(folder: Path) -> Manifest:
    return read_model(
        folder / MANIFEST_FILE,
        Manifest,
        "It is of another version or damaged: choose another folder, or remove it and preprocess again.",
        if_missing="Make the corpus first: python data/preprocess_to_parquet.py --input data/distillation "
        f"--output {folder} --recursive",
    )


class SourceNote(BaseModel):
    """The note beside a downloaded file of JSON lines: where it is from, and under which licence."""

    repository: str
    license: str
    rows: int
    is_whole: bool  # the repository holds no more rows


def note_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.source.json")


def read_note(file: Path) -> SourceNote | None:
    """The note beside `file`; None for a file that somebody put there by hand."""
    note = note_path(file)
    return read_model(note, SourceNote, "Remove it.") if note.is_file() else None
