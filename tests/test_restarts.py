"""Under `torchrun --max-restarts`, a run on text or a distillation whose ranks are killed ends like one that nothing
happened to, if it resumes what is there."""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.distillation.run_samples import OPTIONS, places, words, write_world
from tests.ranks import Started, run_two_ranks, start_two_ranks
from tests.text_runs import text_flags, write_corpus
from tests.tiny import TORCHRUN, assert_same_end, end, logged, start, steps_on_disk, wait_for

PROGRAM, DISTILLATION = "pretrain_instruct.py", "src/distillation/scripts/train.py"
INTERVAL, KILLS = 7, 10


def flags(data: Path, run_dir: Path, epochs: int, workers: int) -> list[str]:
    options = {"checkpoint_interval": INTERVAL, "keep_last": 2, "lr": 1e-3, "dataloader_workers": workers}
    return text_flags(data, run_dir, resume="auto", epochs=epochs, eval_interval=epochs, **options)


def distillation_flags(root: Path, run_dir: Path) -> list[str]:
    steps = {"max_steps": 5 * INTERVAL, "save_interval": INTERVAL, "keep_last_n": 2, "eval_interval": 2 * INTERVAL}
    return words(OPTIONS | places(root, run_dir.name) | steps | {"resume_from": "auto"})


@pytest.fixture(params=[PROGRAM, DISTILLATION])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[Path], list[str]]]:
    """A program, and what it is told to make a run in a directory."""
    if request.param == PROGRAM:
        data = write_corpus(tmp_path / "data")
        return PROGRAM, lambda run_dir: flags(data, run_dir, 7, 0)
    write_world(tmp_path)
    return DISTILLATION, lambda run_dir: distillation_flags(tmp_path, run_dir)


def last_step(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    whole = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def resumed_steps(err: str) -> list[int]:
    return [int(step) for step in re.findall(r"resumed from \S+step_(\d+)", err)]


def assert_like(killed: Path, whole: Path) -> None:
    assert logged(killed) == logged(whole)
    assert_same_end(killed, whole)
    assert not [path for path in killed.iterdir() if path.name.startswith(".")], "a checkpoint was left half-written"


def test_a_killed_rank_costs_some_steps_and_changes_nothing(
    command: tuple[str, Callable[[Path], list[str]]], tmp_path: Path
) -> None:
    (program, told), whole, killed = command, tmp_path / "whole", tmp_path / "killed"
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    attempts = ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": count} for count in "01")
    ranks = start_two_ranks(program, told(killed), tmp_path, agent.port, **next(attempts))
    wait_for(lambda: last_step(killed) >= 3 * INTERVAL)
    reached = last_step(killed)
    os.kill(ranks[1].pid, signal.SIGKILL)
    os.kill(ranks[0].pid, signal.SIGTERM)  # as torchrun does
    left = end(ranks[0], timeout=60)
    assert left.code and "another rank has ended" in left.err
    assert all(step % INTERVAL == 0 for step in steps_on_disk(killed)), "it saved a step on its way out"
    ranks = start_two_ranks(program, told(killed), tmp_path, agent.port, **next(attempts))
    run_two_ranks(program, told(whole), tmp_path)
    ended, _ = [end(rank, timeout=300) for rank in ranks]
    assert ended.code == 0, ended.err
    (resumed,) = resumed_steps(ended.err)
    assert resumed > reached - 2 * INTERVAL, "one checkpoint may have been on its way to the disk"
    assert_like(killed, whole)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """Some come while the ranks import, read, tokenize and load, others at a step."""
    data, whole, killed = write_corpus(tmp_path / "data"), tmp_path / "whole", tmp_path / "killed"
    draw, epochs = random.Random(0), 100
    torchrun = start(flags(data, killed, epochs, 1), tmp_path, *TORCHRUN, "--max-restarts", str(KILLS), door=PROGRAM)
    former: set[int] = set()
    to_start = 0.0  # how long the first ranks took until they trained
    for number in range(KILLS):
        former = new_ranks(torchrun, former)
        began, before = time.monotonic(), last_step(killed)
        if number % 2:
            time.sleep(draw.uniform(0, 1.2 * to_start))
        else:
            aim = draw.randrange(1, 4 * INTERVAL)
            wait_for(lambda before=before, aim=aim: last_step(killed) >= before + aim, 600)  # type: ignore[misc]
            to_start = to_start or time.monotonic() - began
        moment, reached = time.monotonic() - began, last_step(killed)
        assert torchrun.poll() is None, "the run was over before it had been killed so often"
        os.kill(draw.choice(sorted(former)), signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda former=former: not ranks_of(torchrun) & former)  # type: ignore[misc]
        took = time.monotonic() - began
        print(
            f"kill {number + 1}: {moment:.1f} s after the start, at step {reached}; the other left {took:.1f} s later"
        )
        assert took < 35, "torchrun kills after 30 s what does not leave"
    run_two_ranks(PROGRAM, flags(data, whole, epochs, 1), tmp_path, timeout=1200)
    ended = end(torchrun, timeout=1200)
    assert ended.code == 0, ended.err
    print(f"{last_step(whole)} steps; resumed from", resumed_steps(ended.err))
    assert_like(killed, whole)


def ranks_of(torchrun: Started) -> set[int]:
    found = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True, check=False).stdout
    return {int(word) for word in found.split()}


def new_ranks(torchrun: Started, former: set[int]) -> set[int]:
    wait_for(lambda: len(ranks_of(torchrun)) == 2 and not ranks_of(torchrun) & former, 120)
    return ranks_of(torchrun)
