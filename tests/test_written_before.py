"""What an earlier tree left on disk is still loaded, gone on from and answered with: tests/recorded/write_fixtures.py wrote it."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recorded.world import World

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "tests" / "fixtures" / "written_before"
GOES_ON: dict[str, dict[str, Any]] = json.loads((PLACE / "goes_on.json").read_text())
TOLERANCE = 1e-3  # machines differ in their last bits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(ROOT, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


def copied(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    shutil.copytree(PLACE / name, folder, symlinks=True)
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if any(key.startswith("train/") for key in line)]


@pytest.mark.parametrize("name", GOES_ON)
def test_a_run_goes_on(name: str, world: World, tmp_path: Path) -> None:
    facts, folder = GOES_ON[name], copied(name, tmp_path)
    before = steps(folder)
    world.call(facts["door"], *facts["command"], cwd=folder)
    after = steps(folder)
    assert after[: len(before)] == before and before[-1]["step"] == facts["step"]
    more = after[len(before) :]
    assert [line["step"] for line in more] == [facts["step"] + 1 + i for i in range(len(facts["losses"]))]
    losses = [line[facts["key"]] for line in more]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses == pytest.approx(facts["losses"], abs=TOLERANCE)


@pytest.mark.parametrize("name", ["unrolled", "carried", "chat", "distilled"])
def test_a_checkpoint_answers(name: str, world: World, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    words = ["--message", "Hello!", "--system-message", "", "--max-output-tokens", 4, "--device", "cpu", "--json"]
    said = json.loads(world.call("answer", "--checkpoint", "run", *words, "--temperature", 0, cwd=folder))
    wanted = GOES_ON[name]["answer"]
    assert said["tokens"] == wanted["tokens"]
    assert said["logprobs"] == pytest.approx(wanted["logprobs"], abs=TOLERANCE)


def test_puzzles_are_evaluated(world: World, tmp_path: Path) -> None:
    folder = copied("puzzle", tmp_path)
    command = [word for word in GOES_ON["puzzle"]["command"] if not word.startswith(("resume", "max_steps"))]
    report = json.loads(world.call("pretrain", *command, "eval_only=true", "load_checkpoint=run", cwd=folder))
    assert report["all"]["lm_loss"] == pytest.approx(GOES_ON["puzzle"]["evaluated"]["all"]["lm_loss"], abs=TOLERANCE)


def test_a_tuned_teacher_teaches(world: World, tmp_path: Path) -> None:
    """The merged model and its adapter, each as a teacher of the run that was written before."""
    student, tuned = copied("distilled", tmp_path), copied("tuned", tmp_path)
    losses = []
    for output, teacher in (
        ("a", {"model": tuned / "run"}),
        ("b", {"model": tuned / "teacher", "adapter": tuned / "run"}),
    ):
        words = [
            "--teacher-mode",
            "direct",
            "--teacher-model",
            teacher["model"],
            "--output-dir",
            output,
            "--max-steps",
            2,
        ]
        words += ["--teacher-adapter-path", teacher["adapter"]] if "adapter" in teacher else []
        world.call("distill", *without_last(GOES_ON["distilled"]["command"]), *words, cwd=student)
        lines = [json.loads(line) for line in (student / output / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/kd"] for line in lines if "train/kd" in line])
    assert losses[0] == pytest.approx(losses[1], abs=TOLERANCE)
    assert losses[0] == pytest.approx(GOES_ON["tuned"]["teaches"], abs=TOLERANCE)


def without_last(command: list[str]) -> list[str]:
    """Without the words that resume."""
    return command[: command.index("--resume-from")]
