"""Metrics reach metrics.jsonl whatever else fails, and a resumed file reads like that of an uninterrupted run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.checkpoints.run_directory import RunDirectory
from engine.train.tracking import metrics_file
from engine.train.tracking.backend import TrackedRun
from engine.train.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def open_tracker(run_dir: Path, **changes) -> Tracker:
    run = TrackedRun(
        directory=RunDirectory(run_dir, "puzzles", "first", ""),
        config={"arch": {"hidden_size": 8}},
        total_steps=10,
        resume_step=changes.pop("resume_step", 0),
        log_interval=1,
    )
    return Tracker(run, **({"backends": []} | changes))


def read_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_clock(line: dict) -> dict:
    return {key: value for key, value in line.items() if key != "time" and not key.startswith("perf/")}


def test_every_call_is_one_line_on_disk_at_once(tmp_path):
    tracker = open_tracker(tmp_path / "new" / "run")
    tracker.log({"train/lm_loss": 0.5, "train/count": 3}, step=1)
    tracker.log({"all/exact_accuracy": torch.tensor(0.25)}, step=2)

    first, second = read_lines(tmp_path / "new" / "run")
    tracker.close()
    assert without_clock(first) == {"step": 1, "train/lm_loss": 0.5, "train/count": 3}
    assert isinstance(first["train/count"], int) and first["time"] > 1e9
    assert without_clock(second) == {"step": 2, "all/exact_accuracy": 0.25}


def test_numbers_come_back_bit_by_bit(tmp_path):
    value = 0.1 + 0.2
    tracker = open_tracker(tmp_path)
    tracker.log({"loss": value, "narrow": torch.tensor(0.1).item()}, step=1)
    tracker.close()

    (line,) = read_lines(tmp_path)
    assert line["loss"] == value and line["narrow"] == torch.tensor(0.1).item()


def test_nonfinite_values_are_null_and_named(tmp_path):
    tracker = open_tracker(tmp_path)
    tracker.log({"loss": float("nan"), "norm": float("inf"), "low": float("-inf"), "fine": 1.0}, step=1)
    tracker.close()

    assert without_clock(read_lines(tmp_path)[0]) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "low": None,
        "fine": 1.0,
        "nonfinite": {"loss": "nan", "norm": "inf", "low": "-inf"},
    }


def run_steps(run_dir: Path, first: int, last: int) -> None:
    tracker = open_tracker(run_dir, resume_step=first - 1)
    for step in range(first, last + 1):
        tracker.log({"train/lm_loss": 1 / step}, step=step)
        if step % 3 == 0:
            tracker.log({"all/lm_loss": 2 / step}, step=step)
    tracker.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "tra', b'{"step": 7}', b"\x00\x00\n", b'{"loss": 1}\n'])
@pytest.mark.parametrize("first", [4, 7])
def test_resumed_file_reads_like_an_uninterrupted_one(tmp_path, torn, first):
    run_steps(tmp_path / "whole", 1, 9)
    run_steps(tmp_path / "resumed", 1, 6)
    with (tmp_path / "resumed" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    run_steps(tmp_path / "resumed", first, 9)

    resumed, whole = read_lines(tmp_path / "resumed"), read_lines(tmp_path / "whole")
    assert [without_clock(line) for line in resumed] == [without_clock(line) for line in whole]
    assert os.listdir(tmp_path / "resumed") == ["metrics.jsonl"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.sampled_from([0, 4, 6]))
def test_a_damaged_byte_costs_no_line_but_its_own(tmp_path, capsys, place, bit, cut):
    run_steps(tmp_path, 1, 6)
    file = tmp_path / "metrics.jsonl"
    content = bytearray(file.read_bytes())
    lines, place = bytes(content).splitlines(keepends=True), int(place * len(content))
    content[place] ^= 1 << bit
    file.write_bytes(content)
    found = [line for _, line in metrics_file.read_lines(file)]
    whole = [json.loads(line) for line in lines]
    missing = {line["step"] for line in whole if line not in found}
    assume(all(line in whole or line["step"] in missing for line in found))
    assert len([line for line in whole if line not in found]) <= 2, "a line break that is lost costs the next one too"
    is_mentioned = "metrics.jsonl" in capsys.readouterr().err
    assert is_mentioned or len(found) >= len(whole) - (place == len(content) - 1)
    if cut:
        open_tracker(tmp_path, resume_step=cut).close()
        kept = [line for _, line in metrics_file.read_lines(file)]
        assert [line for line in whole if line in kept] == [x for x in whole if x in found and x["step"] <= cut]


def test_lines_before_the_resumed_step_are_not_rewritten(tmp_path):
    run_steps(tmp_path, 1, 6)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    open_tracker(tmp_path, resume_step=6).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_evaluation_that_a_resumed_run_repeats_is_written_once(tmp_path):
    run_steps(tmp_path, 1, 6)
    tracker = open_tracker(tmp_path, resume_step=6, resume_before_evaluation=True)
    assert without_clock(read_lines(tmp_path)[-1]) == {"step": 6, "train/lm_loss": 1 / 6}
    tracker.log({"all/lm_loss": 2 / 6}, step=6)
    tracker.close()

    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_new_run_in_an_old_folder_keeps_the_old_metrics(tmp_path):
    run_steps(tmp_path, 1, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run_steps(tmp_path, 1, 1)

    assert (tmp_path / "metrics.previous.jsonl").read_bytes() == before
    assert [line["step"] for line in read_lines(tmp_path)] == [1]


def test_other_ranks_write_nothing(tmp_path, capfd):
    tracker = open_tracker(tmp_path / "run", enabled=False, backends=["tensorboard"])
    tracker.log({"loss": 1.0}, step=1)
    tracker.advance(1)
    tracker.print("hello")
    tracker.close()

    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_bar_and_messages_go_to_stderr(tmp_path, capfd):
    tracker = open_tracker(tmp_path, resume_step=4)
    tracker.log({"train/lm_loss": 0.125, "train/exact_accuracy": 0.5}, step=5)
    tracker.advance(6)
    tracker.print("a message")
    tracker.close()

    printed = capfd.readouterr()
    assert printed.out == ""
    assert "a message\n" in printed.err
    assert "6/10" in printed.err and "loss 0.125, exact 0.5" in printed.err


def test_bar_of_text_shows_the_loss_per_token(tmp_path, capfd):
    tracker = open_tracker(tmp_path)
    tracker.log({"train/lm_loss": 0.125, "train/token_loss": 4.5}, step=1)
    tracker.advance(1)
    tracker.close()

    shown = capfd.readouterr().err
    assert "token_loss 4.5" in shown and "0.125" not in shown


def test_missing_package_is_a_warning(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracker = open_tracker(tmp_path, backends=["wandb", "tensorboard"])
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()

    said = capfd.readouterr().err
    assert "Warning: tracker wandb is off: it is not installed" in said and "pip install wandb" in said
    assert "Warning: tracker tensorboard is off: it is not installed" in said
    assert read_lines(tmp_path)[0]["loss"] == 1.0


def test_wandb_without_login_is_a_warning(tmp_path, capfd, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracker = open_tracker(tmp_path / "run", backends=["wandb"])
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()

    assert "Warning: tracker wandb is off: No API key configured" in capfd.readouterr().err
    assert read_lines(tmp_path / "run")[0]["loss"] == 1.0


def test_wandb_is_offline_by_default_and_resumes_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for resume_step in (0, 2):
        tracker = open_tracker(tmp_path, backends=["wandb"], resume_step=resume_step)
        tracker.log({"loss": float("nan")}, step=resume_step + 1)
        tracker.close()

    run_id = (tmp_path / "wandb_id").read_text()
    written = {path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")}
    assert written == {f"run-{run_id}.wandb"}


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, None),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_API_KEY": "key"}, "online"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "disabled"}, None),
        ({"WANDB_API_KEY": ""}, None),
    ],
)
def test_auto_is_wandb_where_the_environment_asks_for_it(tmp_path, monkeypatch, environment, mode):
    wandb, modes = pytest.importorskip("wandb"), []
    monkeypatch.setattr(wandb, "init", lambda mode, **_settings: modes.append(mode) or FakeRun())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    open_tracker(tmp_path, backends=["auto", "wandb"] if mode else ["auto"]).close()
    assert modes == ([mode] if mode else [])


class FakeRun:
    """What W&B and trackio give for a run."""

    def __init__(self):
        self.lines = []

    def log(self, metrics, step):
        self.lines.append((step, metrics))

    def finish(self):
        self.lines.append("end")


def test_a_key_that_wandb_does_not_take_is_a_warning(tmp_path, capfd, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "...")
    tracker = open_tracker(tmp_path, backends=["auto"])
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()
    assert "Warning: tracker wandb is off" in capfd.readouterr().err
    assert read_lines(tmp_path)[0]["loss"] == 1.0


@pytest.fixture
def trackio(monkeypatch):
    """Stands in for the package: `inits` are the arguments of each start, `run` what the last run was told."""

    def init(**given):
        print("logged to ...")
        module.inits.append(given)
        module.run = FakeRun()
        return module.run

    module = SimpleNamespace(inits=[], init=init, finish=lambda: module.run.finish())
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_trackio_gets_the_same_numbers_and_a_resumed_run_continues(tmp_path, capfd, trackio):
    for resume_step, resume in ((0, "never"), (2, "allow")):
        tracker = open_tracker(tmp_path, backends=["trackio"], resume_step=resume_step)
        tracker.log({"loss": 0.5}, step=resume_step + 1)
        tracker.close()
        assert trackio.run.lines == [(resume_step + 1, {"loss": 0.5}), "end"]
        expected = {"project": "puzzles", "name": "first", "config": {"arch": {"hidden_size": 8}}, "resume": resume}
        assert trackio.inits.pop() == expected
    assert not capfd.readouterr().out


def test_trackio_that_does_not_start_is_a_warning(tmp_path, capfd, trackio):
    trackio.init = lambda **given: (_ for _ in ()).throw(ValueError("reserved"))
    tracker = open_tracker(tmp_path, backends=["trackio"])
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()
    assert "Warning: tracker trackio is off: reserved" in capfd.readouterr().err
    assert read_lines(tmp_path)[0]["loss"] == 1.0


def test_wandb_that_dies_in_the_middle_costs_no_metrics(tmp_path, capfd, monkeypatch):
    wandb = pytest.importorskip("wandb")

    class DyingRun:
        def log(self, metrics, step):
            if step == 2:
                raise ConnectionResetError("Connection lost")

        def finish(self):
            raise wandb.Error("not reached once the tracker is off")

    monkeypatch.setattr(wandb, "init", lambda **_settings: DyingRun())
    tracker = open_tracker(tmp_path, backends=["wandb"])
    for step in (1, 2, 3):
        tracker.log({"loss": 1.0 * step}, step=step)
    tracker.close()

    assert [line["loss"] for line in read_lines(tmp_path)] == [1.0, 2.0, 3.0]
    said = capfd.readouterr().err
    assert said.count("Warning: tracker wandb is off: Connection lost") == 1
    assert "not reached" not in said


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker(tmp_path, backends=["tensorboard"])
    tracker.log({"train/lm_loss": 0.5}, step=1)
    tracker.log({"train/lm_loss": 0.25}, step=2)
    tracker.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/lm_loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (2, 0.25)]


def test_full_disk_says_how_to_go_on(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        tracker = open_tracker(small)
        with pytest.raises(OSError, match=r"No space left.*make room.*resume=true.*metrics\.jsonl"):
            for step in range(1, 1000):
                tracker.log({"train/lm_loss": 1 / step}, step=step)
        tracker.close()
        open_tracker(small, resume_step=5).close()
        assert [line["step"] for line in read_lines(small)] == [1, 2, 3, 4, 5]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_killed_run_has_all_its_lines(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from engine.checkpoints.run_directory import RunDirectory
from engine.train.tracking.backend import TrackedRun
from engine.train.tracking.tracker import Tracker
folder = Path({str(tmp_path)!r})
tracker = Tracker(TrackedRun(RunDirectory(folder, "p", "r", ""), {{}}, total_steps=9, resume_step=0, log_interval=1), backends=[])
for step in range(1, 6):
    tracker.log({{"loss": 1.0}}, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5]
