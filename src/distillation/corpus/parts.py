"""Preprocessing in parts: which files belong to a part, and whether all parts together are the corpus of a single run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from dataset.files.disk import write_file
from dataset.files.json_file import read_model
from src.distillation.corpus.manifest import Manifest, Record, Source, load_manifest

PART_FILE = "part.json"
FOLDER = re.compile(r"(\d+)-of-(\d+)")


class PartFacts(Record):
    """What a part says of itself beside its manifest."""

    number: int = Field(ge=1)
    of: int = Field(ge=1)
    rows_per_shard: int = Field(ge=1)  # which documents share a row depends on it


class PartSource(NamedTuple):
    """A file that a part has preprocessed."""

    folder: Path
    manifest: Manifest
    source: Source


def parts_folder(output: Path) -> Path:
    """Beside the corpus, in whose own folder there is nothing else."""
    return output.with_name(f"{output.name}-parts")


def part_folder(output: Path, number: int, of: int) -> Path:
    return parts_folder(output) / f"{number}-of-{of}"


def files_of_part(files: Sequence[Path], number: int, of: int) -> list[Path]:
    """The files of one of so many parts of about the same size, in their order."""
    sizes, mine = [0] * of, set()
    for file in sorted(files, key=lambda file: (-file.stat().st_size, file)):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += file.stat().st_size
        if smallest == number - 1:
            mine.add(file)
    return [file for file in files if file in mine]


def begin_part(folder: Path, facts: PartFacts, replaces: bool) -> None:
    """Say what the part is; refuse to go on with one that has other shards."""
    file = folder / PART_FILE
    if file.exists() and not replaces and (former := _facts_in(folder)) != facts:
        raise ValueError(
            f"{file} says {former.rows_per_shard} rows a shard, this run makes {facts.rows_per_shard}. Use the same "
            "--shard-size, or make the part again with --force."
        )
    write_file(file, facts.model_dump_json(indent=2) + "\n")


def _facts_in(folder: Path) -> PartFacts:
    return read_model(folder / PART_FILE, PartFacts, "Make the part again with --force.")


def open_parts(
    output: Path, expected: Manifest, rows_per_shard: int, sources: Mapping[str, str]
) -> dict[str, PartSource]:
    """What the parts beside `output` have made of each file, by its path.

    Refuses, by name, a part that is missing or was made with other options than the empty manifest `expected` has, and a
    file that no part or more than one has, or that is not the one (`sources`: path -> SHA-256) that a single run reads.
    """
    found: dict[str, PartSource] = {}
    problems: list[str] = []
    for folder in _folders(output):
        manifest = load_manifest(folder)
        facts = _facts_in(folder)
        manifest.check_made_for(folder, expected.tokenizer, expected.max_seq_length)
        if manifest.val_fraction != expected.val_fraction:
            problems.append(
                f"{folder} was made with --val-fraction {manifest.val_fraction}, not {expected.val_fraction}"
            )
        if facts.rows_per_shard != rows_per_shard:
            problems.append(
                f"{folder} was made with another --shard-size: {facts.rows_per_shard} rows, not {rows_per_shard}"
            )
        for source in manifest.sources:
            if source.path in found:
                problems.append(f"{source.path} is in {found[source.path].folder} and in {folder}")
            elif source.path not in sources:
                problems.append(f"{folder} holds {source.path}, which is not in the input")
            elif source.sha256 != sources[source.path]:
                problems.append(f"{folder} holds another {source.path} than the input")
            found[source.path] = PartSource(folder, manifest, source)
    problems += [f"{path} is in no part" for path in sources if path not in found]
    if problems:
        raise ValueError(
            f"The parts are not those of one run: {'; '.join(problems)}. Run these parts again, with --skip-existing where "
            "a file is missing, with --force where one is too much or differs."
        )
    return found


def _folders(output: Path) -> list[Path]:
    """Those of all parts, in order."""
    root = parts_folder(output)
    there = sorted(root.iterdir()) if root.is_dir() else []
    matches = [match for path in there if (match := FOLDER.fullmatch(path.name))]
    divisions = sorted({int(match[2]) for match in matches})
    if len(divisions) != 1:
        what = " and ".join(f"parts of {of}" for of in divisions) or "no parts"
        raise ValueError(f"{root} holds {what}. Make all parts i/n of one n with --part i/n, and remove others.")
    (of,) = divisions
    folders = [part_folder(output, number, of) for number in range(1, of + 1)]
    if missing := [f"{number}/{of}" for number, folder in enumerate(folders, 1) if not (folder / PART_FILE).is_file()]:
        raise ValueError(f"{root} lacks the part {', '.join(missing)}. Run the same command with --part {missing[0]}.")
    return folders
