"""What a model gets can be looked at: in colour on a terminal, plainly in a file."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.chat.samples import show_samples
from tests.dataset.conversation_files import build, make_chats

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("show") / "d", make_chats(30), "--pack")


def show(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "show_sample.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_samples_are_shown_plainly_in_a_pipe(folder: Path, tmp_path: Path) -> None:
    done = show(str(folder), "--count", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.startswith(f"{folder}, train: 2 of ") and head.endswith("loss on assistant")
    assert sum(line.startswith("--- document ") for line in lines) == 2
    assert "\x1b" not in done.stdout
    assert any(word in done.stdout for word in ("small", "large", "letter"))


def test_seed_draws_and_split_chooses(folder: Path) -> None:
    one, same, other = (show_samples(folder, "train", 3, seed, in_colour=False) for seed in (1, 1, 2))
    assert one == same != other
    assert f"{folder}, test: 1 of " in show_samples(folder, "test", 1, 0, in_colour=False)


def test_colour_on_demand_and_on_a_terminal(folder: Path) -> None:
    assert "\x1b[" in show(str(folder), "--color").stdout
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "scripts" / "show_sample.py"), str(folder), "--count", "1"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # how a terminal without a program says that it ends
            while piece := os.read(ours, 65536):
                told += piece
    os.close(ours)
    assert process.returncode == 0 and b"\x1b[" in told


def test_wrong_folder_is_one_message(tmp_path: Path) -> None:
    done = show(str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "dataset.json" in done.stderr
