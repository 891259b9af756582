"""Downloads the data sets of a plan, each into one file of JSON lines, or says how far they are."""

import argparse
import fnmatch
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset.files.disk import disk_errors, new_file, write_file
from dataset.files.download import HubUnreachable, find_hub_file
from dataset.files.json_stream import read_values
from dataset.files.parquet import parquet_records
from dataset.files.records import repository_names, text_blocks
from dataset.text.conversation import has_answer, parse_record
from dataset.tokenization.protocol import is_unicode
from engine.entry import INTERRUPTED
from src.distillation.corpus.manifest import SourceNote, note_path, read_note
from src.distillation.corpus.plans import BASELINE, CATEGORIES, CURRICULUM, HubSource, Row

RAW_FOLDER = ".downloads"  # hidden, so that no half-finished file is taken for data


def main_baseline(data_dir: Path, argv: list[str] | None = None) -> None:
    """The entry point of the first, balanced corpus of mathematics and code."""
    parser = argparse.ArgumentParser(description="Download the first corpus: MetaMath, CodeSearchNet, APPS, MBPP.")
    _add_flags(parser, data_dir)
    args = parser.parse_args(argv)
    sys.exit(download(BASELINE, args.data_dir, args.force))


def main_curriculum(data_dir: Path, argv: list[str] | None = None) -> None:
    """The entry point of the whole curriculum."""
    parser = argparse.ArgumentParser(description="Download the curriculum, or a category of it.")
    _add_flags(parser, data_dir)
    parser.add_argument(
        "--category", choices=CATEGORIES, action="append", help="only this one; may be given several times"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show the plan and download nothing")
    what.add_argument("--status-only", action="store_true", help="show what is there and download nothing")
    args = parser.parse_args(argv)
    chosen = [source for source in CURRICULUM if source.category in (args.category or CATEGORIES)]
    if args.dry_run or args.status_only:
        print("\n".join(plan_lines(chosen, args.data_dir) if args.dry_run else status_lines(chosen, args.data_dir)))
        return
    sys.exit(download(chosen, args.data_dir, args.force))


def download(sources: Iterable[HubSource], data_dir: Path, force: bool = False) -> int:
    """Download what is missing, each source alone; the exit code."""
    failures: list[str] = []
    chosen = list(sources)
    for number, source in enumerate(chosen):
        target = target_of(source, data_dir)
        if not force and is_done(source, data_dir):
            print(f"{target}: there already ({count_rows(target)} rows)")
            continue
        print(f"{source.name}: licence {source.license}, {source.card}", file=sys.stderr)
        try:
            note = _download_one(source, data_dir)
        except HubUnreachable as error:
            print(f"{source.name} failed: {error}", file=sys.stderr)
            failures += [other.name for other in chosen[number:] if force or not is_done(other, data_dir)]
            break
        except (ValueError, OSError) as error:
            failures.append(source.name)
            print(f"{source.name} failed: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"\ninterrupted: run again to resume {source.name} where it stopped", file=sys.stderr)
            return INTERRUPTED
        else:
            print(f"{target}: {note.rows} rows, licence {note.license}")
    if failures:
        print(
            f"error: not downloaded: {', '.join(failures)}. Run again to resume; the others are kept.", file=sys.stderr
        )
    return 1 if failures else 0


def target_of(source: HubSource, data_dir: Path) -> Path:
    return data_dir / source.category / f"{source.name}.jsonl"


def is_done(source: HubSource, data_dir: Path) -> bool:
    """A file with as many rows as the plan wants, or one that somebody put there by hand."""
    target = target_of(source, data_dir)
    if not target.is_file():
        return False
    note = read_note(target)
    return note is None or note.is_whole or note.rows >= source.rows


def count_rows(file: Path) -> int:
    if not file.is_file():
        return 0
    note = read_note(file)
    if note is not None:
        return note.rows
    with open(file, "rb") as lines:
        return sum(1 for line in lines if line.strip())


def plan_lines(sources: Sequence[HubSource], data_dir: Path) -> Iterator[str]:
    """One line a source: what would be fetched, and under which licence."""
    missing = [source for source in sources if not is_done(source, data_dir)]
    for category, members in _by_category(sources):
        yield f"{category}: {sum(source.rows for source in members):,} rows"
        for source in members:
            state = "to fetch" if source in missing else "there"
            yield f"  {source.name:<16} {source.rows:>9,} rows  {state:<8}  {source.license:<14}  {source.card}"
    yield f"{len(missing)} data sets to fetch, {sum(source.rows for source in missing):,} rows, into {data_dir}"


def status_lines(sources: Sequence[HubSource], data_dir: Path) -> Iterator[str]:
    """How many of the planned rows are there."""
    for category, members in _by_category(sources):
        counts = {source.name: count_rows(target_of(source, data_dir)) for source in members}
        yield f"{category}: {sum(counts.values()):,} of {sum(source.rows for source in members):,} rows"
        for source in members:
            is_there = target_of(source, data_dir).is_file()
            state = "there" if is_done(source, data_dir) else "incomplete" if is_there else "missing"
            if state != "there" and _raw_folder(source, data_dir).is_dir():
                state += ", begun"
            yield f"  {source.name:<16} {counts[source.name]:>9,} of {source.rows:>9,} rows  {state}"


def _add_flags(parser: argparse.ArgumentParser, data_dir: Path) -> None:
    parser.add_argument("--data-dir", type=Path, default=data_dir, help="where the data goes (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="download again what is there")


def _download_one(source: HubSource, data_dir: Path) -> SourceNote:
    target, raw = target_of(source, data_dir), _raw_folder(source, data_dir)
    refused: list[str] = []
    rows = _usable_rows(source, raw, target, refused)
    num_rows = 0
    with disk_errors(target), new_file(target) as out, tqdm(total=source.rows, desc=source.name, unit=" rows") as bar:
        for row in islice(rows, source.rows):
            head = {"id": f"{source.name}-{num_rows:07d}", "source": source.name, "category": source.category}
            out.write(json.dumps(head | row, ensure_ascii=False).encode() + b"\n")
            num_rows += 1
            bar.update()
        if num_rows <= len(refused):
            raise ValueError(
                f"{source.repo} gave {num_rows} usable rows and {len(refused)} others ({''.join(refused[:1])}). Its "
                "format has changed; prepare this data set by hand."
            )
        is_whole = next(rows, None) is None
    if refused:
        print(f"{source.name}: left out {len(refused)} records, first {refused[0]}", file=sys.stderr)
    note = SourceNote(repository=source.repo, license=source.license, rows=num_rows, is_whole=is_whole)
    write_file(note_path(target), note.model_dump_json(indent=2) + "\n")
    shutil.rmtree(raw)
    return note


def _usable_rows(source: HubSource, raw: Path, target: Path, refused: list[str]) -> Iterator[Row]:
    """The rows of a source that a model can learn from; what is wrong with the other records is added to `refused`."""
    for number, record in enumerate(read_records(source.repo, source.pattern, raw, target), 1):
        try:
            rows = list(source.read(record))
            for row in rows:
                check_row(row)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            refused.append(f"record {number}: {error!r}")
        else:
            yield from rows


def check_row(row: Row) -> None:
    """Refuse what preprocessing would refuse."""
    if "text" not in row:
        if not has_answer(parse_record(row)):
            raise ValueError("no answer")
    elif not isinstance(row["text"], str) or not is_unicode(row["text"]):
        raise ValueError("the text is not valid Unicode text")


def read_records(repo: str, pattern: str, folder: Path, by_hand: Path) -> Iterator[Any]:
    """The records of all files that match, one after the other; only as much is downloaded as is asked for.

    `folder` keeps what was downloaded, so that a later call resumes there. `by_hand` is where a user without a network
    may put the data.
    """
    for number, name in enumerate(_names(repo, pattern, folder, by_hand)):
        target = folder / f"{number:04d}-{Path(name).name}"
        file = target if target.is_file() else find_hub_file(repo, name, target)
        if name.endswith(".parquet"):
            yield from parquet_records(file if isinstance(file, Path) else file.fetch())
        else:
            for _, record in read_values(text_blocks(file), f"{repo}/{name}"):
                yield record


def _names(repo: str, pattern: str, folder: Path, by_hand: Path) -> list[str]:
    """The files that match, as they were when the download began."""

    def matching(names: Sequence[str]) -> list[str]:
        if found := sorted(fnmatch.filter(names, pattern)):
            return found
        raise ValueError(
            f"The repository {repo} holds no file like {pattern}, only {', '.join(sorted(names)[:10])}. Its files were "
            f"renamed: look at its page and put the rows into {by_hand} by hand."
        )

    return repository_names(repo, matching, folder, by_hand)


def _raw_folder(source: HubSource, data_dir: Path) -> Path:
    return data_dir / RAW_FOLDER / source.name


def _by_category(sources: Sequence[HubSource]) -> Iterator[tuple[str, list[HubSource]]]:
    """Those of each category, in the order of the categories."""
    for category in CATEGORIES:
        if members := [source for source in sources if source.category == category]:
            yield category, members
