"""Under `torchrun --max-restarts` with resume=auto, a run whose ranks are killed ends like one that nothing happened to."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.text_runs import text_flags, write_corpus
from tests.tiny import TORCHRUN, Fork, assert_same_end, end, logged, start, steps_on_disk, wait_for

PROGRAM, INTERVAL, KILLS = "pretrain_instruct.py", 7, 10
Started = Fork | subprocess.Popen[str]


def flags(data: Path, run_dir: Path, epochs: int, workers: int) -> list[str]:
    options = {"checkpoint_interval": INTERVAL, "keep_last": 2, "lr": 1e-3, "dataloader_workers": workers}
    return text_flags(data, run_dir, resume="auto", epochs=epochs, eval_interval=epochs, **options)


def two_ranks(words: list[str], folder: Path, port: int, **environment: str) -> list[Started]:
    """What torchrun starts, without its own start."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | environment
    return [start(words, folder, door=PROGRAM, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in "01"]


def undisturbed(words: list[str], folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for rank in two_ranks(words, folder, port):
        ended = end(rank, timeout=1200)
        assert ended.code == 0, ended.err


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


def test_a_killed_rank_costs_some_steps_and_changes_nothing(tmp_path: Path) -> None:
    data, whole, killed = write_corpus(tmp_path / "data"), tmp_path / "whole", tmp_path / "killed"
    words, agent = flags(data, killed, 7, 0), TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    of_agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = two_ranks(words, tmp_path, agent.port, TORCHELASTIC_RESTART_COUNT="0", **of_agent)
    wait_for(lambda: last_step(killed) >= 3 * INTERVAL)
    reached = last_step(killed)
    os.kill(ranks[1].pid, signal.SIGKILL)
    os.kill(ranks[0].pid, signal.SIGTERM)  # as torchrun does
    left = end(ranks[0], timeout=60)
    assert left.code and "another rank has ended" in left.err
    assert all(step % INTERVAL == 0 for step in steps_on_disk(killed)), "it saved a step on its way out"
    ranks = two_ranks(words, tmp_path, agent.port, TORCHELASTIC_RESTART_COUNT="1", **of_agent)
    undisturbed(flags(data, whole, 7, 0), tmp_path)
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
    undisturbed(flags(data, whole, epochs, 1), tmp_path)
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
