"""The note beside a downloaded file of JSON lines: where it is from, and under which licence."""

from pathlib import Path

from pydantic import BaseModel

from dataset.files.disk import write_file
from dataset.files.json_file import read_model

SUFFIX = ".source.json"


class SourceNote(BaseModel):
    repository: str
    license: str
    rows: int
    is_whole: bool  # the repository holds no more rows


def note_path(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)


def read_note(file: Path) -> SourceNote | None:
    """The note beside `file`; None for a file that somebody put there by hand."""
    note = note_path(file)
    return read_model(note, SourceNote, "Remove it.") if note.is_file() else None


def write_note(file: Path, note: SourceNote) -> None:
    write_file(note_path(file), note.model_dump_json(indent=2) + "\n")
