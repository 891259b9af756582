"""50 kills and 20 SIGTERMs: what was disturbed is given again and must end as if nothing had happened."""

import random
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.plants import Plant, late_work
from tests.faults.programs import Ended, Programs
from tests.faults.scenarios import (
    ARC,
    BUILDERS,
    CACHE,
    CHAT_DATA,
    CHAT_RUN,
    DISTILL_RUN,
    MAZE,
    PREPROCESS,
    PUZZLE_RUN,
    SUDOKU,
    TEXT_RUN,
    TRAININGS,
    TUNING_RUN,
    Scenario,
)
from tests.faults.verdicts import Case, Problem, Problems, crashes, differences, leftovers, metrics, success

# Kinds of places -> what the place looks like; the place behind it counts too, where a kind ends in "+".
KINDS = {
    "files": r"open .*\.step_\d+\.tmp-\*/",
    "rename+": r"os\.rename .*\.step_\d+\.tmp-\* ",
    "links+": r"os\.(symlink|rename) .*(latest|best)",
    "evaluation": r"call eval_batch",
    "step": r"call backward",
    "data": r"open (data|raw|pets|x_)",
    "cache": r"cache",
    "removal": r"shutil\.rmtree|os\.remove|os\.rmdir",
    "config": r"open run/config",
    "out": r" out|\.out",
    "any": r"",
}
KILLS = {
    PUZZLE_RUN: {"files": 3, "rename+": 2, "links+": 4, "evaluation": 2, "step": 2, "removal": 1, "any": 1, "time": 1},
    CHAT_RUN: {"files": 1, "links+": 1, "evaluation": 1, "any": 1, "time": 1},
    TEXT_RUN: {"step": 1, "evaluation": 1, "data": 2, "any": 1, "time": 1},
    DISTILL_RUN: {"files": 1, "links+": 1, "cache": 3, "evaluation": 1, "any": 1, "time": 1},
    TUNING_RUN: {"files": 1, "any": 2},
    SUDOKU: {"out": 2},
    MAZE: {"out": 1},
    ARC: {"out": 1, "time": 1},
    CHAT_DATA: {"out": 2},
    PREPROCESS: {"out": 2, "time": 1},
    CACHE: {"out": 2},
}
TERMS = {
    PUZZLE_RUN: {"step": 2, "evaluation": 2, "files": 1, "links+": 1, "data": 1, "config": 1},
    CHAT_RUN: {"step": 1, "evaluation": 1, "data": 1},
    TEXT_RUN: {"step": 1, "evaluation": 1, "data": 1},
    DISTILL_RUN: {"step": 1, "evaluation": 1, "cache": 1, "config": 1},
    TUNING_RUN: {"step": 1, "files": 1},
}
BEFORE_TRAINING = ("data", "config", "cache")  # or behind it: there the system's own end is as good as ours
SAVING = ("files", "links+")
RESUMED = re.compile(r"resumed from \S*step_(\d+)")


def chosen_place(world: Programs, scenario: Scenario, kind: str, draw: random.Random, number: int) -> Plant:
    """A place of that kind which an undisturbed run comes to."""
    all_places = scenario.places(world)
    pattern = re.compile(KINDS[kind])
    at = [index for index, (place, _) in enumerate(all_places) if pattern.search(place)]
    if kind.endswith("+"):  # before the operation, and behind it
        at = sorted({*at, *(index + 1 for index in at if index + 1 < len(all_places))})
    if not at:
        raise RuntimeError(f"{scenario.name} has no place of kind {kind}: {KINDS[kind]}")
    place, count = all_places[draw.choice(at)]
    return Plant(place, count, number)


def pointed_step(run: Path) -> int:
    """The checkpoint that `latest` leads to, else the newest; 0 without one."""
    numbers = [int(path.name[5:]) for path in run.glob("step_*") if path.is_dir()]
    pointed = (run / "latest").resolve().name
    return int(pointed[5:]) if pointed.startswith("step_") and int(pointed[5:]) in numbers else max(numbers, default=0)


def resumed(world: Programs, scenario: Scenario, place: Path) -> Problems:
    """Give a training again and compare it with the undisturbed one."""
    run, reference = place / "run", scenario.reference(world)
    lines = metrics(run)
    logged, saved = (lines[-1]["step"] if lines else 0), pointed_step(run)
    again = world.run(scenario.door, *scenario.words(world, place), *scenario.again, place=place)
    if problems := success(again):
        return problems
    found = RESUMED.search(again.err)
    start = int(found[1]) if found else 0
    problems = []
    if start < saved:
        problems.append(Problem("silent restart", f"resumed from step {start}, step {saved} was saved"))
    if logged - start > 2 * scenario.interval:  # one interval, and one while the newest was being written
        problems.append(Problem("lost steps", f"from step {logged} back to {start}, interval {scenario.interval}"))
    return problems + differences(run, reference / "run") + differences(place, reference, "run|" + scenario.unlike)


def given_again(world: Programs, scenario: Scenario, place: Path) -> Problems:
    again = world.run(scenario.door, *scenario.words(world, place), *scenario.again, place=place)
    return success(again) or differences(place, scenario.reference(world), scenario.unlike)


def disturb(
    scenario: Scenario, kind: str, number: int, world: Programs, folder: Path, draw: random.Random
) -> tuple[Problems, str]:
    """Send the signal at a place of that kind, look at how the program ends, and give it again."""
    reference = scenario.reference(world)
    place, trace = scenario.place(world, folder), folder / "trace"
    words = scenario.words(world, place)
    if kind == "time":
        seconds = draw.uniform(0.1, 0.9) * scenario.seconds(world)
        ended, where = (
            world.run(scenario.door, *words, place=place, kill_after=seconds),
            f"SIGKILL after {seconds:.2f} s",
        )
    else:
        plant = chosen_place(world, scenario, kind, draw, number)
        ended, where = world.run(scenario.door, *words, place=place, plant=plant, trace=trace), str(plant)
    problems = how_it_ended(ended, number, trace, kind)
    follow = resumed if scenario.interval else given_again
    problems += follow(world, scenario, place) + leftovers(place, reference, scenario.unlike)
    return problems, where


def how_it_ended(ended: Ended, number: int, trace: Path, kind: str) -> Problems:
    if number == signal.SIGKILL:
        is_over = ended.code == 0 and kind == "time"  # it was quicker than the undisturbed one
        return [] if ended.code == -number or is_over else [Problem("exit code", f"was not killed: {ended.code}")]
    is_before = kind in BEFORE_TRAINING and ended.code == -number  # what a shell calls 128 + number
    # Over within a micro-batch, or all but its last save was done.
    is_over = late_work(trace) <= 1 or (kind in SAVING and "late call backward" not in trace.read_text())
    if ended.code == 0 and "done:" in ended.err and is_over:
        return crashes(ended)
    problems = [] if is_before else crashes(ended)
    if not problems and not is_before and ended.code != 128 + number:
        problems.append(Problem("exit code", f"{ended.code} instead of {128 + number}: {ended.last}"))
    if (late := late_work(trace)) > 1:
        problems.append(Problem("late", f"{late} micro-batches after the signal"))
    return problems


def cases() -> list[Case]:
    found = []
    for what, number, plan in (("kill", signal.SIGKILL, KILLS), ("SIGTERM", signal.SIGTERM, TERMS)):
        for scenario, kinds in plan.items():
            for kind, count in kinds.items():
                for index in range(count):
                    run: Callable[..., tuple[Problems, str]] = partial(disturb, scenario, kind, number)
                    found.append(Case(what, f"{what}/{scenario.name}/{kind}-{index + 1}", run))
    return found


def prepare(world: Programs, names: list[str]) -> None:
    """What cases of these names are compared with."""
    for scenario in (*TRAININGS, *BUILDERS):
        if any(name.split("/")[0] in ("kill", "SIGTERM") and name.split("/")[1] == scenario.name for name in names):
            scenario.reference(world)
