"""The list of runs: every kind is named, what is missing is shown as such, one damaged run hides no other."""

import json
import os
import time

import pytest

from lab.runs import arch_of, find_runs, kind_of, list_runs, readable_age
from scripts import list_runs as script
from tests.tiny import flags, pretrain, write_sudoku


def write_run(folder, config: str, steps: int = 0, age: float = 0.0, **meta):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    lines = [json.dumps({"step": step, "train/lm_loss": 1.0}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "tra']))
    os.utime(folder / "metrics.jsonl", (time.time() - age,) * 2)
    if meta:
        (folder / f"step_{steps}").mkdir()
        (folder / f"step_{steps}" / "meta.json").write_text(json.dumps(meta))
        (folder / f"step_{steps}" / "config.yaml").write_text(config)
    return folder


def test_runs_are_listed_with_their_best_number_the_last_one_first(tmp_path):
    known = {"best_metric": "token_loss", "best_value": 0.51234, "planned_steps": 40}
    text = "arch: {name: recursive_reasoning.trm@Model}\ndataset: {source: sample}\n"
    write_run(tmp_path / "a" / "old", text, 12, 7200, commit="0123456789abcdef", commit_is_dirty=True, **known)
    write_run(tmp_path / "new", "data_paths: [x]\ndataset_type: chat\narch: {name: retnet@RetNet}\n", 3, 90)
    write_run(tmp_path / "broken", "arch: [\n", 0, 200_000)

    new, old, broken = list_runs(tmp_path)
    assert old == {
        **{"run": "a/old", "kind": "instruct", "arch": "trm", "step": "12 of 40", "best": "token_loss 0.5123"},
        **{"commit": "01234567+", "age": "2 h"},
    }
    assert (new["run"], new["kind"], new["arch"], new["step"], new["best"]) == ("new", "chat", "retnet", "3 of -", "-")
    assert (broken["kind"], broken["step"], broken["age"]) == ("-", "0 of -", "2 d")


def test_steps_are_no_runs(tmp_path):
    run = write_run(tmp_path / "run", "student: retnet\nteacher_mode: direct\n", 2, commit=None)
    (run / ".step_3.tmp-77").mkdir()  # that is being written
    (run / ".step_3.tmp-77" / "config.yaml").write_text("student: retnet\n")
    assert list(find_runs(tmp_path)) == [run]


@pytest.mark.parametrize(
    ("config", "kind", "arch"),
    [
        ({"student": "trm_text", "teacher_mode": "direct", "teacher_model": "big"}, "distillation", "trm_text"),
        ({"lora_rank": 4, "teacher_model": "big", "data_path": "x"}, "tuning", "big"),
        ({"data_paths": ["x"], "arch": {"name": "recursive_reasoning.hrm:Model"}}, "puzzles", "hrm"),
        ({}, "-", "-"),
    ],
)
def test_kinds_are_known_by_their_config(config, kind, arch):
    assert (kind_of(config), arch_of(config)) == (kind, arch)


def test_ages_are_readable():
    assert [readable_age(s) for s in (5, 130, 7300, 190_000)] == ["5 s", "2 min", "2 h", "2 d"]


def test_a_run_records_its_commit_and_the_script_prints_it(tmp_path, capsys, monkeypatch):
    version = {"commit": "f" * 40, "commit_is_dirty": False}
    monkeypatch.setattr("engine.train.opening.code_version", lambda: version)
    run = tmp_path / "runs" / "first"
    ended = pretrain(flags(write_sudoku(tmp_path / "data"), run))
    assert ended.code == 0, ended.err
    meta = json.loads((run / "latest" / "meta.json").read_text())
    assert version.items() <= meta.items()

    script.main([str(run.parent)])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "kind", "arch", "step", "best", "commit", "age"]
    assert row.split()[:3] == ["first", "puzzles", "trm"] and "27 of 27" in row and "ffffffff " in row


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        script.main([str(tmp_path)])
