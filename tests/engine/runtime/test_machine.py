"""Tests of what one rank of a machine does for all: two processes under torchrun, which share one store."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from itertools import repeat
from pathlib import Path

import pytest
import torch.distributed as dist

import engine.runtime.machine as machine
from dataset.files.scratch import PREFIX
from engine.runtime.machine import MachineRanks
from tests.text_runs import text_flags, write_corpus
from tests.tiny import ROOT, Ended, end, wait_for

TRAIN = ROOT / "pretrain_instruct.py"
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HELD = """
import os, runpy, sys, time
import dataset.text.slimorca as corpus
permission, honest = sys.argv.pop(1), corpus.DocumentStoreBuilder.build
def held(builder):
    while not os.path.exists(permission):
        time.sleep(0.05)
    return honest(builder)
corpus.DocumentStoreBuilder.build = held
sys.argv[0] = {train!r}
runpy.run_path({train!r}, run_name="__main__")
"""


def start_ranks(program: Path, words: list[str], scratch: Path) -> subprocess.Popen[str]:
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *RANKS, str(program), *words],
        cwd=scratch,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_ranks(program: Path, words: list[str], scratch: Path) -> Ended:
    return end(start_ranks(program, words, scratch))


def folders(scratch: Path) -> list[Path]:
    return sorted(scratch.glob(f"{PREFIX}*"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "data")


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A training whose leader, before it ends tokenizing, waits for the file that the first argument names."""
    program = tmp_path / "held.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(TRAIN.parent)!r})" + HELD.format(train=str(TRAIN)))
    return program


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[MachineRanks]:
    """The two of a machine, and a third of another one, in this process."""
    store = dist.HashStore()
    monkeypatch.setattr(machine, "_get_default_store", lambda: store)
    monkeypatch.setattr(machine, "_numbers", repeat(0))
    monkeypatch.setattr(machine, "WAIT_LIMIT", timedelta(seconds=0.1))
    found = []
    for rank, local_rank in enumerate((0, 1, 0)):
        environment = {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": local_rank, "MASTER_ADDR": "host", "MASTER_PORT": 1}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        found.append(MachineRanks("tokenizing"))
    return found


def test_the_words_of_a_leader_reach_its_machine_alone(ranks: list[MachineRanks]) -> None:
    leader, other, elsewhere = ranks
    assert [rank.is_leader for rank in ranks] == [True, False, True]
    elsewhere.tell("of another machine")
    leader.tell("of this one")
    assert other.told() == "of this one"


def test_a_wait_ends_with_its_limit(ranks: list[MachineRanks]) -> None:
    with pytest.raises(ValueError, match="rank 0"):
        ranks[1].told()
    with pytest.raises(ValueError, match="other ranks"):
        ranks[0].meet()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_one_raises_all_raise(ranks: list[MachineRanks], failing: int) -> None:
    with pytest.raises(OSError, match="broken line 7"), ranks[failing]:
        raise OSError("broken line 7")
    for rank in ranks[:failing] + ranks[failing + 1 :]:
        with pytest.raises(ValueError, match="^broken line 7$"), rank:
            rank.meet()


def test_a_failure_of_the_leader_ends_all_ranks_with_its_words(data: Path, tmp_path: Path) -> None:
    (data / "SlimOrca.jsonl").write_text('{"conversations": 7}\n' * 40)
    began = time.monotonic()
    ended = run_ranks(TRAIN, text_flags(data, tmp_path / "run"), tmp_path / "scratch")
    assert ended.code == 1 and ended.out == "" and time.monotonic() - began < 60
    assert "SlimOrca.jsonl, line 1" in ended.err and "wait" in ended.err
    assert folders(tmp_path / "scratch") == []


def test_what_a_killed_run_left_is_removed_and_a_live_store_stays(data: Path, held: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    killed = start_ranks(held, ["/nowhere", *text_flags(data, tmp_path / "killed")], scratch)
    wait_for(lambda: any(scratch.glob(f"{PREFIX}*/train/tokens.bin")))
    (left,) = folders(scratch)
    living = start_ranks(held, [str(tmp_path / "permission"), *text_flags(data, tmp_path / "living")], scratch)
    wait_for(lambda: len(folders(scratch)) == 2)
    (own,) = [folder for folder in folders(scratch) if folder != left]
    for rank in subprocess.run(["pgrep", "-P", str(killed.pid)], capture_output=True, text=True).stdout.split():
        os.kill(int(rank), signal.SIGKILL)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert left.exists()
    assert run_ranks(TRAIN, text_flags(data, tmp_path / "next"), scratch).code == 0
    assert folders(scratch) == [own]
    (tmp_path / "permission").touch()
    ended = end(living)
    assert ended.code == 0 and "wait" in ended.err and folders(scratch) == []
