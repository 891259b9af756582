"""The note beside a downloaded file of JSON lines: where it is from, and under which licence."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from dataset.files.disk import write_file

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
    try:
        return SourceNote.model_validate_json(note_path(file).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{note_path(file)} is damaged: {error.errors()[0]['msg']}. Remove it.") from error


def write_note(file: Path, note: SourceNote) -> None:
    write_file(note_path(file), note.model_dump_json(indent=2) + "\n")
