"""Full disks in every writer: said with a remedy, nothing half-written stays, and with room again it ends as it should."""

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.plants import SmallDisk
from tests.faults.programs import Programs, wait
from tests.faults.scenarios import (
    BUILDERS,
    PUZZLE_RUN,
    TEXT_RUN,
    TRAININGS,
    Scenario,
    chat_words,
    copy_chat,
    text_words,
)
from tests.faults.verdicts import HIDDEN, Case, Problem, Problems, all_names, crashes, differences, refusal, success
from tests.recorded.items import PUZZLES
from tests.recorded.world import options

PAGE = 4096
ROOMY = 1 << 28
SHARES = (0.02, 0.35, 0.8)  # of what the undisturbed program takes


def outputs_words(world: Programs, place: Path) -> list[Any]:
    run = TEXT_RUN.reference(world) / "run" / "latest"
    return ["--checkpoint", run, "--save-outputs", "inputs", "labels", "preds", "--output-dir", place / "scores"]


def saved_words(world: Programs, place: Path) -> list[Any]:
    run = PUZZLE_RUN.reference(world) / "run"
    given = {"data_paths": [str(PUZZLE_RUN.reference(world) / "data")], "eval_only": True, "load_checkpoint": str(run)}
    given |= {"arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 2, "checkpoint_path": str(place / "run")}
    return options(PUZZLES, given | {"eval_save_outputs": ["inputs", "labels", "preds", "logits"]})


def plot_words(world: Programs, place: Path) -> list[Any]:
    return [PUZZLE_RUN.reference(world) / "run", "--output", place / "plot.png"]


def calibrated_words(world: Programs, place: Path) -> list[Any]:
    return ["--checkpoint", place / "run", "--conversations", 8, "--max-loss-increase", 5]


def conversations_words(world: Programs, place: Path) -> list[Any]:
    return ["--count", 300, "--output", place / "chats.json", "--held-out", place / "held.json"]


def copy_run(scenario: Scenario, world: Programs, place: Path) -> None:
    shutil.copytree(scenario.reference(world) / "run", place / "run", symlinks=True)


def sample_words(world: Programs, place: Path) -> list[Any]:
    given = [
        word for word in text_words(world, place) if not str(word).startswith(("dataset.source", "dataset.tokenizer"))
    ]
    return [*given, "dataset.source=sample", "dataset.sample_size=200", "max_steps=1"]


def shown_words(world: Programs, place: Path) -> list[Any]:
    given = [word for word in chat_words(world, place) if not str(word).startswith("epochs")]
    return [*given, "epochs=1", "tracker=[tensorboard]"]


MORE = (
    Scenario("save-outputs", "inference", outputs_words),
    Scenario("eval-save-outputs", "pretrain", saved_words),
    Scenario("plot", "plot", plot_words),
    Scenario("calibrate", "calibrate", calibrated_words, prepare=partial(copy_run, TEXT_RUN)),
    Scenario("make-conversations", "conversations", conversations_words),
    Scenario("sample-corpus", "instruct", sample_words, ("resume=true",)),
    Scenario("tensorboard", "pretrain", shown_words, ("resume=true",), prepare=copy_chat),
)
WRITERS = (*TRAININGS, *BUILDERS, *MORE)


def taken(folder: Path) -> int:
    """Bytes that the files of a folder take on a disk of whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def in_a_fork(folder: Path, action: Callable[[], tuple[Problems, str]]) -> tuple[Problems, str]:
    """Its own namespaces end with it."""
    result = folder / "verdict"
    child = os.fork()
    if child == 0:
        try:
            problems, where = action()
            result.write_text("\n".join([where, *(f"{problem.kind}\t{problem.seen}" for problem in problems)]))
        finally:
            os._exit(0)
    wait(child, 400, None)
    if not result.exists():
        return [Problem("campaign", "the case itself failed")], ""
    where, *lines = result.read_text().splitlines()
    return [Problem(*line.split("\t", 1)) for line in lines], where


def fill_up(
    scenario: Scenario, share: float, world: Programs, folder: Path, draw: random.Random
) -> tuple[Problems, str]:
    reference = scenario.reference(world)
    return in_a_fork(folder, partial(on_a_small_disk, scenario, share, world, folder, reference))


def on_a_small_disk(
    scenario: Scenario, share: float, world: Programs, folder: Path, reference: Path
) -> tuple[Problems, str]:
    draft = folder / "draft"
    draft.mkdir()
    inputs = taken(scenario.place(world, draft))
    size = max(inputs + int(share * (taken(reference) - inputs)) // PAGE * PAGE, PAGE)
    disk_folder = folder / "disk"
    disk_folder.mkdir()
    disk = SmallDisk(disk_folder, size)
    where = f"{size:,} bytes; {disk.kind}"
    place = disk_folder / "work"
    shutil.copytree(draft / "work", place, symlinks=True)
    before = all_names(place)
    output = folder / "output"  # on the large disk
    output.mkdir()
    ended = world.run(scenario.door, *scenario.words(world, place), place=place, output=output)
    if ended.code == 0:
        return (success(ended) if disk.kind.startswith("RLIMIT") else [Problem("campaign", "was not full")]), where
    problems = crashes(ended) or refusal(ended, str(disk_folder))
    if not problems and not any(word in ended.err for word in ("full", "room", "space", "need", "too large")):
        problems.append(Problem("no remedy", ended.last))
    left = sorted(name for name in all_names(place) - before if HIDDEN.search(name))
    if left:
        problems.append(Problem("leftover", ", ".join(left[:4])))
    disk.grow(ROOMY)
    again = world.run(scenario.door, *scenario.words(world, place), *scenario.again, place=place, output=output)
    more = success(again) or (differences(place, reference, f"run|{scenario.unlike}") if scenario not in MORE else [])
    if not more and scenario in TRAININGS:
        more = differences(place / "run", reference / "run")
    return problems + [Problem(problem.kind, f"with room again: {problem.seen}") for problem in more], where


def cases() -> list[Case]:
    found = []
    for scenario in WRITERS:
        for share in SHARES:
            name = f"full/{scenario.name}/{round(100 * share)}-percent"
            found.append(Case("full disk", name, partial(fill_up, scenario, share)))
    return found


def prepare(world: Programs, names: list[str]) -> None:
    for scenario in WRITERS:
        if any(name.startswith(f"full/{scenario.name}/") for name in names):
            scenario.reference(world)
