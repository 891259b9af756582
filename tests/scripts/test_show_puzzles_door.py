"""The program that draws puzzles: its flags reach the engine, and a fault is one message."""

import runpy
import sys
from pathlib import Path

import pytest

import lab.puzzle_pictures.show_puzzles

DOOR = Path(__file__).parents[2] / "scripts" / "show_puzzles.py"


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(DOOR), *words])
    runpy.run_path(str(DOOR), run_name="__main__")


def test_flags_reach_the_engine(monkeypatch):
    given_flags = {}
    monkeypatch.setattr(lab.puzzle_pictures.show_puzzles, "show_puzzles", lambda **given: given_flags.update(given))
    run(monkeypatch, "--checkpoint", "c")
    defaults = {"checkpoint": "c", "data_path": None, "count": 4, "seed": 0, "device": "auto"}
    assert given_flags == defaults | {"output": Path("puzzles.png")}
    chosen = ["--data-path", "d", "--count", "2", "--seed", "3", "--output", "x.gif", "--device", "cpu"]
    run(monkeypatch, "--checkpoint", "c", *chosen)
    assert given_flags == {
        **defaults,
        "data_path": "d",
        "count": 2,
        "seed": 3,
        "output": Path("x.gif"),
        "device": "cpu",
    }


def test_a_fault_is_one_message_and_wrong_flags_are_usage(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*nowhere"):
        run(monkeypatch, "--checkpoint", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--checkpoint", "c", "--count", "0")
    assert "0 is not 1 or more" in capsys.readouterr().err
