"""The training program as a process: kills, signals, and what its command line accepts."""

import shlex
import signal
import subprocess
import sys

import pytest

from tests.tiny import (
    ROOT,
    Ended,
    assert_same_end,
    flags,
    halting_weights,
    logged,
    pretrain,
    signal_at_step,
    start,
    steps_on_disk,
    write_sudoku,
)

# Everything that a resumed run must pick up again, and the plainest run there is.
RICH = {
    "arch": {"puzzle_emb_ndim": 32, "halt_exploration_prob": 0.5},
    "ema": True,
    "dataloader_workers": 1,
    "gradient_accumulation_steps": 2,
    "lr_min_ratio": 0.1,
}
PLAIN = {"arch": {"no_ACT_continue": False}, "optimizer": "adamw", "grad_clip": 1.0}


@pytest.mark.parametrize("name", ["rich", "plain"])
def test_a_run_killed_twice_ends_as_if_it_had_not_been(name, tmp_path):
    data = write_sudoku(tmp_path / "data", identifiers=6)
    options = {"rich": RICH, "plain": PLAIN}[name] | {"epochs": 24, "checkpoint_interval": 7}
    if name == "rich":
        options["load_checkpoint"] = str(halting_weights(tmp_path / "start.pt", data, options["arch"]))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(flags(data, whole, **options)).code == 0

    command = flags(data, broken, **options)
    assert signal_at_step(start(command, tmp_path), broken, 10, signal.SIGKILL).code == -signal.SIGKILL
    assert (
        signal_at_step(start([*command, "resume=true"], tmp_path), broken, 30, signal.SIGKILL).code == -signal.SIGKILL
    )
    first_resumed = max(steps_on_disk(broken)) + 1
    assert 10 < first_resumed <= 72, "the run must have been killed in its middle"
    assert pretrain([*command, "resume=true"]).code == 0

    assert logged(broken) == logged(whole)
    assert_same_end(whole, broken)
    if name == "rich":
        halting = [line["train/steps"] for line in logged(whole) if line.get("train/count")]
        assert len(halting) > 40 and not all(steps == int(steps) for steps in halting), "exploration never mattered"


def test_sigterm_saves_and_tells_how_to_go_on(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    process = start(flags(data, run_dir, epochs=90, **{"eval_interval": 90}), ROOT)
    stopped = signal_at_step(process, run_dir, 5, signal.SIGTERM)
    assert stopped.code == 0, stopped.err
    (step,) = steps_on_disk(run_dir)
    assert 5 <= step < 270
    assert logged(run_dir)[-1]["step"] == step
    assert stopped.out == "", "no result was reached"

    (told,) = [line for line in stopped.err.splitlines() if "go on with: " in line]
    words = shlex.split(told.partition("go on with: ")[2])
    assert words[0] == "python"
    typed = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert typed.returncode == 0, typed.stderr
    assert [line["step"] for line in logged(run_dir)] == [*range(1, 271), 270]
    assert f"resumed from {run_dir / f'step_{step}'}" in typed.stderr
    assert Ended(typed.returncode, typed.stdout, typed.stderr).report["all"]["steps"] == 3.0


def test_ctrl_c_stops_the_loader_workers_too(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    process = start(flags(data, run_dir, epochs=90, eval_interval=90, dataloader_workers=2), tmp_path)
    stopped = signal_at_step(process, run_dir, 5, signal.SIGINT)
    assert stopped.code == 0, stopped.err
    assert "go on with: " in stopped.err and "Traceback" not in stopped.err
    assert len(steps_on_disk(run_dir)) == 1
