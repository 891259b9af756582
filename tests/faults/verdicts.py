"""What may not happen, and how it is seen: the verdicts of the campaign."""

import json
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.programs import TIMED_OUT, Ended, Programs
from tests.recorded.read import TIMES, digest

PROBLEMS = (
    "traceback",
    "no remedy",
    "silent restart",
    "lost steps",
    "different result",
    "leftover",
    "exit code",
    "late",
)
CRASH = "Traceback (most recent call last)"
HIDDEN = re.compile(r"(^|/)\.|\.tmp$|\.partial|\.old-|\.replaced")
FORMER = "metrics.previous.jsonl"  # of a run that was killed before its first checkpoint, and is kept
OWN_SUFFIXES = (".stdin", ".stdout", ".stderr")


@dataclass(frozen=True)
class Problem:
    """One of PROBLEMS, and what was seen."""

    kind: str
    seen: str


Problems = list[Problem]
Run = Callable[[Programs, Path, random.Random], tuple[Problems, str]]


@dataclass(frozen=True)
class Case:
    """A fault by its name; `run` works in a folder of its own and returns what is wrong, and where the fault was."""

    kind: str
    name: str
    run: Run


def crashes(ended: Ended) -> Problems:
    """A traceback, a fault of the processor, or no end at all."""
    if ended.code == TIMED_OUT:
        return [Problem("no remedy", f"did not end; last line: {ended.last}")]
    if ended.code < 0:
        return [Problem("traceback", f"ended by signal {-ended.code}; last line: {ended.last}")]
    if CRASH in ended.err:
        return [Problem("traceback", ended.last)]
    return []


def refusal(ended: Ended, *names: str) -> Problems:
    """A program that does not accept something says so, and names it."""
    if found := crashes(ended):
        return found
    if ended.code not in (1, 2):
        return [Problem("exit code", f"{ended.code} instead of 1 or 2; last line: {ended.last}")]
    if names and not any(name in ended.err for name in names):
        return [Problem("no remedy", f"none of {', '.join(names)} is named: {ended.last}")]
    return []


def success(ended: Ended, code: int = 0) -> Problems:
    if found := crashes(ended):
        return found
    return [] if ended.code == code else [Problem("exit code", f"{ended.code} instead of {code}: {ended.last}")]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl without their times; a damaged line is none, one that is said again counts once."""
    file = run / "metrics.jsonl"
    found: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else []:
        with suppress(ValueError):
            values = {key: value for key, value in json.loads(line).items() if not TIMES.search(key)}
            if [values] != found[-1:]:
                found.append(values)
    return found


def tree(folder: Path, with_content: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """Every file and link below a folder, with a hash of its content or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = digest(path.read_bytes()) if with_content(name) else "file"
    return found


def leftovers(folder: Path, reference: Path, unlike: str) -> Problems:
    """Files that a finished program leaves and an undisturbed one does not, or the other way round.

    Which steps a run keeps beside the latest and the best follows from where it was stopped; what `unlike` matches may
    be there or not, but nothing unfinished.
    """
    ours, theirs = all_names(folder), all_names(reference)
    ends = {(reference / "run" / name).resolve().name for name in ("latest", "best")}

    def counts(name: str) -> bool:
        step = re.match(r"run/(step_\d+)", name)
        return not (name.endswith(FORMER) or (step and step[1] not in ends) or (unlike and re.match(unlike, name)))

    more = sorted(name for name in ours - theirs if counts(name) or HIDDEN.search(name))
    missing = sorted(name for name in theirs - ours if counts(name))
    found = [Problem("leftover", ", ".join(more[:4]))] if more else []
    return found + ([Problem("different result", f"missing: {', '.join(missing[:4])}")] if missing else [])


def all_names(folder: Path) -> set[str]:
    """Of files, links and folders alike."""
    found = (path for path in folder.rglob("*"))
    return {str(path.relative_to(folder)) for path in found if path.suffix not in OWN_SUFFIXES}


def is_result(name: str) -> bool:
    """Whether two runs that did the same hold the same bytes of this file."""
    return name.endswith((".safetensors", ".npy", ".parquet")) or Path(name).name in ("latest", "best")


def differences(run: Path, reference: Path, unlike: str = "") -> Problems:
    """Metrics bit for bit, weights and arrays byte for byte, and where `latest` and `best` lead."""
    found = []
    ours, theirs = metrics(run), metrics(reference)
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        first = next((f"{one} instead of {other}" for one, other in pairs if one != other), "")
        found.append(Problem("different result", f"{len(ours)} metric lines for {len(theirs)}; {first[:200]}"))
    here, there = tree(run, is_result), tree(reference, is_result)
    both = (name for name in here.keys() & there.keys() if not (unlike and re.match(unlike, name)))
    changed = sorted(name for name in both if here[name] != there[name])
    if changed:
        found.append(Problem("different result", f"content of {', '.join(changed[:4])}"))
    return found
