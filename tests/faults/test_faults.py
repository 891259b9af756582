"""The campaign of faults still runs: a few cases of each kind, and a check that is switched off is found out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

SAMPLE = ("kill/puzzles/files", "damage/resume/model.safetensors-damaged/flip", "input/sudoku/", "full/puzzles/35")


def campaign(place: Path, *words: str) -> tuple[int, str, dict[str, list[list[str]]]]:
    """Exit code, what was printed, and the problems of each case."""
    command = [sys.executable, "-m", "tests.faults.campaign", "--place", str(place), "--jobs", "1", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (place / "results.jsonl").read_text().splitlines()
    return ended.returncode, ended.stdout, {line["name"]: line["problems"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def test_a_few_faults_of_each_kind_are_survived(place: Path) -> None:
    code, out, problems = campaign(place, "--sample", "1", *SAMPLE)
    assert len(problems) == len(SAMPLE) and not any(problems.values()), problems
    assert code == 0
    assert re.findall(r"^\| (kill|damage|input|full disk) \| 1 \| 0 \|", out, re.MULTILINE) == [
        *("kill", "damage", "input", "full disk")
    ]


def test_a_checksum_that_is_not_compared_is_found_out(place: Path) -> None:
    sabotage = ["--sabotage", "engine.checkpoints.load:_check_contents"]
    code, out, problems = campaign(place, *sabotage, "damage/resume/model.safetensors-damaged/flip")
    assert code == 1
    (found,) = problems["damage/resume/model.safetensors-damaged/flip"]
    assert found[0] == "different result" and "model.safetensors" in found[1]


def test_what_held_is_not_repeated_and_names_are_unique(place: Path) -> None:
    code, out, _ = campaign(place, "--resume", "kill/puzzles/files-1")
    assert code == 0 and "| kill | 1 | 0 |" in out
    assert campaign(place, "--list")[1].count("\n") >= 620


def test_an_unknown_name_is_an_error(place: Path) -> None:
    assert campaign(place, "kill/nothing")[0] == 1
