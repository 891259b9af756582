"""The example data set is built offline, from any folder, by the command that the guide names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.chat.reader import open_chat_data
from tests.tiny import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs of the project, where `data/` is nobody's."""
    for name in ("dataset", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("cwd", "command"),
    [("examples", "./prepare_example_chat_dataset.sh"), (".", "examples/prepare_example_chat_dataset.sh")],
)
def test_example_data_set_is_built_without_a_network(checkout: Path, cwd: str, command: str) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    for flags in ([], ["--max-length", "128"]):  # again, and with a flag of one's own
        done = subprocess.run(
            [command, *flags], cwd=checkout / cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("data/example-chat-dataset: ")
    folder = checkout / "data" / "example-chat-dataset"
    assert [len(open_chat_data([folder], split)[0]) for split in ("train", "test")] == [4, 1]
    assert open_chat_data([folder], "train")[1].seq_len == 128


def test_example_conversations_are_not_cut(checkout: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(checkout / "examples" / "prepare_example_chat_dataset.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("0 truncated, 0 split") == 2 and done.stdout.count("dropped: none") == 2


def test_conversations_that_cannot_be_written_are_one_message(tmp_path: Path) -> None:
    program = ROOT / "examples" / "make_conversations.py"
    limited = f"ulimit -f 4; exec {sys.executable} {program} --count 500 --output {tmp_path / 'a.json'}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "a.json" in done.stderr and "Traceback" not in done.stderr
