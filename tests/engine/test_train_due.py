"""What a run evaluates, saves and logs, and when; also where it was stopped and goes on."""

import math
import os
import signal
from unittest import mock

import pytest

from engine.tasks.puzzles import PuzzleTask
from engine.train import loop as train
from models.losses.puzzles import ACTLossHead
from tests.tiny import DOOR, ROOT, flags, logged, pretrain, run_python, steps_on_disk, wait_for, write_sudoku


class KilledError(BaseException):
    """Ends a run on the spot, as a kill does."""


def scripted(*values, metric="lm_loss"):
    """Evaluations with these outcomes, one after the other."""
    reports = [value if isinstance(value, BaseException) else {"all": {metric: value}} for value in values]
    return mock.patch.object(train, "evaluate", side_effect=reports)


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("lm_loss", (3.0, 1.0, 2.0, 5.0), 6), ("exact_accuracy", (0.3, 0.3, 0.4, 0.1), 9)]
)
def test_best_and_latest_are_kept(tmp_path, metric, values, best):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    with scripted(*values, metric=metric):
        ended = pretrain(flags(data, run_dir, epochs=4, eval_interval=1, keep_last=1, best_metric=metric))
    assert ended.code == 0, ended.err
    assert steps_on_disk(run_dir) == [best, 12]
    assert (run_dir / "best").resolve() == run_dir / f"step_{best}"
    assert (run_dir / "latest").resolve() == run_dir / "step_12"


def test_a_resumed_run_remembers_the_best_value(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    command = flags(data, run_dir, epochs=4, eval_interval=1)
    with scripted(3.0, 1.0, KilledError()), pytest.raises(KilledError):
        pretrain(command)
    wait_for(lambda: (run_dir / "best").resolve() == run_dir / "step_6")
    with scripted(2.0, 1.5):
        assert pretrain([*command, "resume=true"]).code == 0
    assert (run_dir / "best").resolve() == run_dir / "step_6"
    assert [line["all/lm_loss"] for line in logged(run_dir) if "all/lm_loss" in line] == [3.0, 1.0, 2.0, 1.5]


def test_a_first_evaluation_that_is_not_a_number_is_said_and_never_best(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    with scripted(math.nan, 2.0, 3.0):
        ended = pretrain(flags(data, run_dir, epochs=3, eval_interval=1, keep_last=1))
    assert ended.code == 0 and "lm_loss is nan" in ended.err
    assert (run_dir / "best").resolve() == run_dir / "step_6"
    assert steps_on_disk(run_dir) == [6, 9]


KILLED_BEFORE_BEST = """
import os, runpy, sys
from unittest import mock
from engine.checkpoints.save import CheckpointStore
from engine.train import loop

mark_best = CheckpointStore._mark_best
CheckpointStore._mark_best = lambda store, step: os._exit(9) if step == 6 else mark_best(store, step)
reports = [{"all": {"lm_loss": value}} for value in (3.0, 1.0, 2.0, 2.5)]
sys.argv = sys.argv[1:]
with mock.patch.object(loop, "evaluate", side_effect=reports):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_kill_between_latest_and_best_is_repaired_by_the_resume(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    command = flags(data, run_dir, epochs=4, eval_interval=1, keep_last=1)
    assert run_python(["-c", KILLED_BEFORE_BEST, DOOR, *command], ROOT).code == 9
    links = [(run_dir / name).resolve().name for name in ("latest", "best")]
    assert links == ["step_6", "step_3"]

    with scripted(2.0, 2.5):
        assert pretrain([*command, "resume=true"]).code == 0
    assert (run_dir / "best").resolve() == run_dir / "step_6"
    assert steps_on_disk(run_dir) == [6, 12]


def test_an_evaluation_is_logged_once_though_the_run_was_killed_right_after_it(tmp_path):
    data, whole, broken = write_sudoku(tmp_path / "data"), tmp_path / "whole", tmp_path / "broken"
    assert pretrain(flags(data, whole, checkpoint_interval=3)).code == 0
    command = flags(data, broken, checkpoint_interval=3)  # step 9 is saved, evaluated, and saved again
    with mock.patch.object(train, "is_best_so_far", side_effect=KilledError), pytest.raises(KilledError):
        pretrain(command)
    assert "all/lm_loss" in logged(broken)[-1]
    wait_for(lambda: (broken / "latest").resolve() == broken / "step_9")
    assert pretrain([*command, "resume=true"]).code == 0
    assert logged(broken) == logged(whole)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"checkpoint_interval": 4}, [3, 4, 6, 8, 9]),
        ({"min_eval_interval": 2, "checkpoint_every_eval": False}, [9]),
        ({"max_steps": 4}, [3, 4]),
    ],
)
def test_checkpoints_are_saved_when_they_are_due(tmp_path, options, saved):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    ended = pretrain(flags(data, run_dir, epochs=3, eval_interval=1, **options))
    assert ended.code == 0, ended.err
    assert steps_on_disk(run_dir) == saved
    evaluated = [line["step"] for line in logged(run_dir) if "all/lm_loss" in line]
    assert evaluated == ([9] if "min_eval_interval" in options else [3, 4] if "max_steps" in options else [3, 6, 9])


def test_a_finished_run_is_left_as_it_is(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    command = flags(data, run_dir, epochs=3)
    assert pretrain(command).code == 0
    before = logged(run_dir), steps_on_disk(run_dir)
    again = pretrain([*command, "resume=true"])
    assert (again.code, logged(run_dir), steps_on_disk(run_dir)) == (0, *before)
    for told in ("finished", "step 9", "lm_loss", "all/exact_accuracy", "epochs=3", "resume=true"):
        assert told in again.err, told
    longer = pretrain([*command, "resume=true", "epochs=6"])
    assert longer.code == 0 and logged(run_dir)[-1]["step"] == 18


def test_the_bar_of_a_finished_run_is_full(tmp_path):
    """The number of steps is an estimate; here the last batch of each pass is not filled."""
    data = write_sudoku(tmp_path / "data")
    ended = pretrain(flags(data, tmp_path / "run", epochs=3, eval_interval=1, global_batch_size=7))
    assert logged(tmp_path / "run")[-1]["step"] == 9 and "9/9" in ended.err


def test_evaluation_counts_to_its_number_of_batches(tmp_path, monkeypatch):
    totals = []
    monkeypatch.setattr("tqdm.tqdm", lambda items, **how: totals.append(how["total"]) or items)
    monkeypatch.setattr("engine.train.opening.Tracker", mock.MagicMock())
    data = write_sudoku(tmp_path / "data")
    assert pretrain(flags(data, tmp_path / "run", epochs=1, eval_interval=1, global_batch_size=4)).code == 0
    assert totals == [3]


@pytest.mark.parametrize("first_end", [5, 9])
def test_a_run_that_ended_early_can_be_made_longer(tmp_path, first_end):
    """9 steps are a pass: the second run goes on within the first pass, or with the second one."""
    data, whole, longer = write_sudoku(tmp_path / "data"), tmp_path / "whole", tmp_path / "longer"
    assert pretrain(flags(data, whole, max_steps=12)).code == 0
    assert pretrain(flags(data, longer, max_steps=first_end)).code == 0
    ended = pretrain(flags(data, longer, max_steps=12, resume=True))
    assert f"done: {12 - first_end} steps" in ended.err
    extra = [line for line in logged(longer) if line["step"] == 5 and "all/lm_loss" in line]
    assert len(extra) == (first_end == 5), "where the first run ended it was evaluated"
    assert [line for line in logged(longer) if line not in extra] == logged(whole)


def test_every_step_is_logged_whatever_the_interval(tmp_path):
    data, lines = write_sudoku(tmp_path / "data"), []
    for interval in (1, 5, 1000):
        run_dir = tmp_path / str(interval)
        assert pretrain(flags(data, run_dir, epochs=3, log_interval=interval)).code == 0
        lines.append(logged(run_dir))
    assert lines[0] == lines[1] == lines[2]
    assert [line["step"] for line in lines[0]] == [*range(1, 10), 9]


def signalled_at(cls, method, call, number):
    """The signal arrives in the course of that call of a method; what it does is counted."""
    honest, calls = getattr(cls, method), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return honest(*args, **kwargs)

    return mock.patch.object(cls, method, counted), calls


@pytest.mark.parametrize(
    ("batch", "step", "number"),
    [(1, 3, signal.SIGTERM), (2, 3, signal.SIGINT), (5, 9, signal.SIGTERM)],
)
def test_a_signal_ends_an_evaluation_which_a_resumed_run_repeats(tmp_path, batch, step, number):
    """Two batches are an evaluation, three steps a pass."""
    data, whole, broken = write_sudoku(tmp_path / "data"), tmp_path / "whole", tmp_path / "broken"
    assert pretrain(flags(data, whole, epochs=3, eval_interval=1)).code == 0
    command = flags(data, broken, epochs=3, eval_interval=1)
    patch, calls = signalled_at(PuzzleTask, "eval_batch", batch, number)
    with patch:
        ended = pretrain(command)
    assert (ended.code, ended.out) == (128 + number, "") and f"stopped after step {step}; resume with" in ended.err
    is_complete = batch % 2 == 0  # the signal came in its last batch
    assert len(calls) == batch and (f"the evaluation after step {step} was cut short" in ended.err) != is_complete
    again = pretrain([*command, "resume=true"])
    assert again.code == 0 and again.report == {"all": mock.ANY}
    assert logged(broken) == logged(whole)


def test_a_signal_leaves_a_step_after_the_current_micro_batch(tmp_path):
    data, whole, broken = write_sudoku(tmp_path / "data"), tmp_path / "whole", tmp_path / "broken"
    options = {"epochs": 3, "gradient_accumulation_steps": 4, "ema": True}
    assert pretrain(flags(data, whole, **options)).code == 0
    command = flags(data, broken, **options)
    patch, calls = signalled_at(ACTLossHead, "forward", 14, signal.SIGTERM)  # the second of four in the fourth step
    with patch:
        ended = pretrain(command)
    assert ended.code == 143 and len(calls) == 14 and "stopped after step 3;" in ended.err
    assert steps_on_disk(broken) == [3]
    assert pretrain([*command, "resume=true"]).code == 0
    assert logged(broken) == logged(whole)


def test_ctrl_c_before_the_first_step_is_one_line(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    with mock.patch("engine.run.open_run", side_effect=KeyboardInterrupt):
        ended = pretrain(flags(data, run_dir))
    assert (ended.code, ended.out) == (130, "")
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("interrupted") and not run_dir.exists()
