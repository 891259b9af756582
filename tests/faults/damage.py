"""200 damaged files: every one is refused by name, or repaired and said, or changes nothing."""

import random
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.malformed import AT_RANDOM, CONFIGS, JSON_TEXTS, TOKENIZERS, TRAINERS, WEIGHTS, sign
from tests.faults.plants import Plant
from tests.faults.programs import Ended, Programs
from tests.faults.scenarios import CACHE, CHAT_RUN, DISTILL_RUN, PUZZLE_RUN, TEXT_RUN, Scenario, distill_places
from tests.faults.verdicts import Case, Problem, Problems, crashes, metrics, refusal
from tests.recorded.items import STUDENT
from tests.recorded.world import flags

STARTED_AGAIN = re.compile(r"resumed from \S*step_(\d+)")
Change = Callable[[Path, random.Random], None]


def truncated(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(1, len(content))])


def short_of_a_byte(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file: Path, draw: random.Random) -> None:
    file.write_bytes(b"")


def bits_flipped(count: int, file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(count):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def zeros(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = draw.randrange(max(1, len(content) - 64))
    content[start : start + 64] = bytes(min(64, len(content) - start))
    file.write_bytes(content)


def noise(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.randbytes(file.stat().st_size))


def swapped(file: Path, draw: random.Random) -> None:
    """With a neighbour of the same kind, else with any other."""
    around = [path for path in file.parent.parent.rglob("*") if path.is_file() and path != file]
    alike = sorted(path for path in around if path.suffix == file.suffix and path.read_bytes() != file.read_bytes())
    other = draw.choice(alike or sorted(around))
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def missing(file: Path, draw: random.Random) -> None:
    file.unlink()


def a_folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


CRUDE: dict[str, Change] = {
    **{"truncated": truncated, "short": short_of_a_byte, "emptied": emptied, "flip": partial(bits_flipped, 1)},
    **{"flips": partial(bits_flipped, 6), "zeros": zeros, "noise": noise, "swapped": swapped, "missing": missing},
    "folder": a_folder,
}


@dataclass(frozen=True)
class Subject:
    """What reads the files: a scenario's folder, and a program whose result is known from the undamaged ones."""

    name: str
    scenario: Scenario
    read: Callable[[Programs, Path], Ended]
    result: Callable[[Path, Ended], object]  # what must not change unsaid
    interrupt: Plant | None = None  # the folder is that of a run which this stopped

    def folder(self, world: Programs) -> Path:
        """The undamaged folder."""
        if self.interrupt is None:
            return self.scenario.reference(world)

        def make(folder: Path) -> None:
            place = self.scenario.place(world, folder)
            words = self.scenario.words(world, place)
            world.run(self.scenario.door, *words, place=place, plant=self.interrupt, trace=folder / "trace")

        return world.made(f"interrupted/{self.name}", make) / "work"

    def copy(self, world: Programs, place: Path) -> None:
        shutil.copytree(self.folder(world), place, symlinks=True)

    def expected(self, world: Programs) -> object:
        """The result with undamaged files."""
        place = world.place / "undamaged" / self.name / "work"
        if not place.exists():
            self.copy(world, place)
            world.is_trouble = False
            ended = self.read(world, place)
            world.is_trouble = True
            if ended.code:
                raise RuntimeError(f"{self.name} cannot even read what is whole: {ended.last}")
            (place.parent / "result").write_text(repr(self.result(place, ended)))
        return (place.parent / "result").read_text()


def resume(scenario: Scenario, world: Programs, place: Path) -> Ended:
    return world.run(scenario.door, *scenario.words(world, place), *scenario.again, place=place)


def from_the_start(scenario: Scenario, world: Programs, place: Path) -> Ended:
    shutil.rmtree(place / "run", ignore_errors=True)
    return world.run(scenario.door, *scenario.words(world, place), place=place)


def reply(world: Programs, place: Path) -> Ended:
    words = ["--checkpoint", place / "run", "--temperature", 0, "--max-new-tokens", 8, "--no-stream", "--device", "cpu"]
    return world.run("chat", *words, "--prompt", "I am Ada and I have 3 cats.", place=place, limit=30)


def evaluate(world: Programs, place: Path) -> Ended:
    words = ["--checkpoint", place / "run" / "latest", "--output-dir", place / "scores"]
    return world.run("inference", *words, place=place, limit=60)


def train_from_cache(world: Programs, place: Path) -> Ended:
    given = distill_places(world) | {"output_dir": place / "run", "cache_dir": place / "out", "max_steps": 3}
    return world.run("distill", *flags(STUDENT, given, {"teacher_mode": "cached"}), place=place)


def of_metrics(place: Path, ended: Ended) -> object:
    return metrics(place / "run")


def of_output(place: Path, ended: Ended) -> object:
    return ended.out.replace(str(place), "")


RESUME = Subject("resume", PUZZLE_RUN, partial(resume, PUZZLE_RUN), of_metrics, Plant("call backward", 14))
REPLY = Subject("reply", CHAT_RUN, reply, of_output)
SCORES = Subject("scores", TEXT_RUN, evaluate, of_output)
PUZZLE_DATA = Subject("puzzle-data", PUZZLE_RUN, partial(from_the_start, PUZZLE_RUN), of_metrics)
CHAT_DATA = Subject("chat-data", CHAT_RUN, partial(from_the_start, CHAT_RUN), of_metrics)
CORPUS = Subject("corpus", DISTILL_RUN, partial(from_the_start, DISTILL_RUN), of_metrics)
CACHED = Subject("teacher-cache", CACHE, train_from_cache, of_metrics)
SUBJECTS = (RESUME, REPLY, SCORES, PUZZLE_DATA, CHAT_DATA, CORPUS, CACHED)
BINARY, TEXT = (
    ("truncated", "short", "emptied", "flip", "flips", "swapped", "missing"),
    ("truncated", "emptied", "flips", "noise"),
)
# Which file of which subject, below the folder; `newest` stands for the newest checkpoint. Then the crude changes.
CRUDELY: list[tuple[Subject, str, Iterable[str]]] = [
    (RESUME, "run/newest/model.safetensors", BINARY),
    (RESUME, "run/newest/ema.safetensors", BINARY),
    (RESUME, "run/newest/trainer.pt", (*BINARY, "zeros", "noise", "folder")),
    (RESUME, "run/newest/meta.json", (*TEXT, "missing", "swapped")),
    (RESUME, "run/newest/config.yaml", ("truncated", "missing")),
    (RESUME, "run/config.yaml", ("truncated", "emptied", "noise", "missing")),
    (RESUME, "run/metrics.jsonl", ("truncated", "short", "flip", "flips", "zeros")),
    (REPLY, "run/newest/model.safetensors", BINARY),
    (REPLY, "run/newest/config.yaml", (*TEXT, "zeros", "missing", "folder")),
    (REPLY, "run/newest/meta.json", (*TEXT, "missing")),
    (REPLY, "run/newest/tokenizer.json", (*TEXT, "flip", "swapped", "missing")),
    (SCORES, "run/newest/tokenizer.model", (*BINARY, "noise")),
    (SCORES, "run/newest/config.yaml", TEXT),
    (PUZZLE_DATA, "data/train/all__inputs.npy", ("truncated", "short", "emptied", "noise", "missing")),
    (PUZZLE_DATA, "data/train/all__puzzle_indices.npy", ("truncated", "emptied", "swapped", "noise")),
    (PUZZLE_DATA, "data/train/all__puzzle_identifiers.npy", ("short", "noise")),
    (PUZZLE_DATA, "data/train/dataset.json", (*TEXT, "missing")),
    (PUZZLE_DATA, "data/identifiers.json", ("truncated", "emptied")),
    (CHAT_DATA, "data/train/all__inputs.npy", ("truncated", "short", "emptied", "noise", "swapped")),
    (CHAT_DATA, "data/train/all__labels.npy", ("truncated", "noise")),
    (CHAT_DATA, "data/train/dataset.json", (*TEXT, "missing")),
    (CHAT_DATA, "data/tokenizer/tokenizer.json", (*TEXT, "flip", "missing")),
    (CORPUS, "data/**/train-*.parquet", (*BINARY, "zeros", "noise", "folder")),
    (CORPUS, "data/manifest.json", (*TEXT, "missing")),
    (CACHED, "out/*.parquet", (*BINARY, "zeros", "noise")),
    (CACHED, "out/cache.json", (*TEXT, "missing")),
]
SIGNED: list[tuple[Subject, str, dict[str, Change]]] = [
    (RESUME, "run/newest/trainer.pt", TRAINERS),
    (RESUME, "run/newest/model.safetensors", WEIGHTS),
    (REPLY, "run/newest/config.yaml", CONFIGS),
    (REPLY, "run/newest/tokenizer.json", TOKENIZERS),
    (RESUME, "run/newest/meta.json", JSON_TEXTS | AT_RANDOM),
    (REPLY, "run/newest/meta.json", AT_RANDOM),
    (PUZZLE_DATA, "data/train/dataset.json", JSON_TEXTS | AT_RANDOM),
    (CHAT_DATA, "data/train/dataset.json", AT_RANDOM),
    (CORPUS, "data/manifest.json", JSON_TEXTS | AT_RANDOM),
    (CACHED, "out/cache.json", AT_RANDOM),
]


def find(place: Path, pattern: str, draw: random.Random) -> Path:
    run = place / "run"
    steps = sorted((path for path in run.glob("step_*")), key=lambda path: int(path.name[5:])) or [run]
    newest = run / "best" if (run / "best").exists() and "interrupted" not in str(place) else steps[-1]
    found = sorted(place.glob(pattern.replace("newest", newest.resolve().name)))
    if not found:
        raise RuntimeError(f"there is no {pattern} in {place}")
    return draw.choice(found)


def try_damaged(
    subject: Subject, pattern: str, change: Change, is_signed: bool, world: Programs, folder: Path, draw: random.Random
) -> tuple[Problems, str]:
    expected, place = subject.expected(world), folder / "work"
    subject.copy(world, place)
    if subject is RESUME:
        (place / "run" / "best").unlink(missing_ok=True)
    file = find(place, pattern, draw)
    before = file.read_bytes()
    change(file, draw)
    if file.is_file() and file.read_bytes() == before:
        return [Problem("campaign", f"{file.name} did not change")], ""
    if is_signed:
        sign(file)
    changed_lines = len({*before.splitlines()} - {*file.read_bytes().splitlines()}) if file.suffix == ".jsonl" else 0
    ended = subject.read(world, place)
    is_same = is_signed or str(subject.result(place, ended)) == expected
    if changed_lines:  # nothing says that a line is as it was written, but the others must stay
        kept = metrics(place / "run")
        is_same = sum(line not in kept for line in metrics(subject.scenario.reference(world) / "run")) <= changed_lines
    problems = judged(file, ended, is_same)
    if not problems and "newest" in pattern and subject is RESUME and ended.code == 0:
        found = STARTED_AGAIN.search(ended.err)
        if (found is None or f"step_{found[1]}" != file.parent.name) and not is_said(file, ended):
            problems = [Problem("silent restart", f"from step {found[1] if found else 0}, {file} is not named")]
    return problems, str(file.relative_to(place))


def is_said(file: Path, ended: Ended) -> bool:
    return file.name in ended.err or f"{file.parent} is not whole" in ended.err


def judged(file: Path, ended: Ended, is_same: bool) -> Problems:
    if ended.code:
        return refusal(ended, file.name, file.parent.name, str(file.parent.parent))
    if problems := crashes(ended):
        return problems
    if is_same or is_said(file, ended):
        return []
    return [Problem("different result", f"{file.name} is not named: {ended.last}")]


def cases() -> list[Case]:
    found = []
    plans = [(subject, pattern, {name: CRUDE[name] for name in names}, False) for subject, pattern, names in CRUDELY]
    plans += [(subject, pattern, changes, True) for subject, pattern, changes in SIGNED]
    for subject, pattern, changes, is_signed in plans:
        for name, change in changes.items():
            file = pattern.rsplit("/", 1)[1].replace("-*", "").replace("*", "shard")
            way = "malformed" if is_signed else "damaged"
            run = partial(try_damaged, subject, pattern, change, is_signed)
            place = "run-" if pattern == "run/config.yaml" else "test-" if "/test/" in pattern else ""
            found.append(Case("damage", f"damage/{subject.name}/{place}{file}-{way}/{name}", run))
    return found


def prepare(world: Programs, names: list[str]) -> None:
    """Results of undamaged files."""
    for subject in SUBJECTS:
        if any(name.startswith(f"damage/{subject.name}/") for name in names):
            subject.expected(world)
