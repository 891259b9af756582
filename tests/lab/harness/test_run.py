"""Tasks of lm-eval from the command line: a table of scores by depth, all results as JSON, and faults in words."""

import json

import pytest

from engine.config.command_line import command_line
from lab.harness.options import HarnessOptions
from lab.harness.run import table
from tests.lab.harness.tasks import CHOICE, GENERATE, ROLLING, TEXTS, task_folder, write_task  # noqa: F401
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import run_door

DOOR = "scripts/evaluate_lm.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("run")
    ended = train_text(text_flags(write_corpus(folder / "data"), folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return folder / "run"


def test_every_kind_of_task_has_a_row_and_every_depth_a_column(run_dir, task_folder, tmp_path):  # noqa: F811
    write_task(task_folder, "choice", CHOICE)
    write_task(task_folder, "generate", GENERATE)
    write_task(task_folder, "rolling", ROLLING, [{"text": text} for text in TEXTS])
    where = ("--checkpoint", run_dir, "--device", "cpu", "--include-path", task_folder)
    words = ("--tasks", "choice,generate,roll*", "--depth", "1,3", "--output", tmp_path / "out.json")
    ended = run_door(DOOR, *where, *words)
    assert ended.code == 0, ended.err
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ended.out.splitlines()]
    assert head == ["task", "shots", "metric", "depth 1", "depth 3"]
    assert [row[0] for row in rows] == ["choice", "choice", "generate", "rolling", "rolling"]
    assert {row[2] for row in rows} == {"acc", "acc_norm", "exact_match", "word_perplexity", "bits_per_byte"}
    report = json.loads((tmp_path / "out.json").read_text())["by_depth"]
    bits = next(row for row in rows if row[2] == "bits_per_byte")
    for depth, cell in zip(("1", "3"), bits[3:], strict=True):
        assert float(cell) == pytest.approx(report[depth]["results"]["rolling"]["bits_per_byte,none"], abs=1e-4)
    assert bits[3] != bits[4]


def test_shots_a_limit_and_turns_reach_lm_eval(run_dir, task_folder, tmp_path):  # noqa: F811
    write_task(task_folder, "choice", CHOICE)
    where = ("--checkpoint", run_dir, "--device", "cpu", "--include-path", task_folder, "--tasks", "choice")
    words = ("--num-fewshot", 1, "--limit", 2, "--apply-chat-template", "--output", tmp_path / "out.json")
    ended = run_door(DOOR, *where, *words)
    assert ended.code == 0, ended.err
    ((depth, found),) = json.loads((tmp_path / "out.json").read_text())["by_depth"].items()
    assert depth == "2" and "| choice | 1 | acc | " in ended.out  # as trained
    assert found["n-shot"]["choice"] == 1 and found["n-samples"]["choice"]["effective"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "choise"], "'choice'"),
        (["--tasks", ","], "--tasks"),
        (["--tasks", "choice", "--include-path", "nowhere"], "nowhere"),
    ],
)
def test_faults_are_told(run_dir, task_folder, monkeypatch, words, told):  # noqa: F811
    from lm_eval import tasks

    real = tasks.TaskManager  # without the tasks that come with lm-eval, whose index takes seconds
    monkeypatch.setattr(
        tasks, "TaskManager", lambda include_path, include_defaults=True: real(None, include_path, False)
    )
    write_task(task_folder, "choice", CHOICE)
    ended = run_door(DOOR, "--checkpoint", run_dir, "--device", "cpu", "--include-path", task_folder, *words)
    assert ended.code == 1 and told in ended.err and not ended.out


def test_flags_that_mean_nothing_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="limit=0"):
        HarnessOptions(limit=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        HarnessOptions(batch_size=0)
    monkeypatch.setattr("sys.argv", [DOOR, "--checkpoint", "x", "--tasks", "y", "--depth", "2,1"])
    with command_line(HarnessOptions(), None) as options:
        assert options.depth == (1, 2)


def test_a_filter_and_a_missing_error_are_shown_as_they_are():
    metrics = {"alias": " - sums", "exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A", "sample_len": 3}
    shown = table({"4": {"results": {"sums": metrics}, "n-shot": {}}})
    assert shown.splitlines()[2] == "|  - sums |  | exact_match (strict) | 0.5000 |"
