"""What Hydra configures as a run: the command that resumes it."""

import shlex
import sys
from pathlib import Path

import pytest

from engine.build.jobs import PuzzleJob
from engine.config.check import check
from engine.config.schema import PretrainConfig
from tests.tiny import ARCH, RUN, TRM


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", ""),
        ("++arch.L_layers=1 ++lr=1e-4", "arch.L_layers=1 lr=1e-4"),
        ("arch=hrm recipe=sudoku_4x4", "arch=hrm recipe=sudoku_4x4"),
        ("++run_name=x ++resume=true ++checkpoint_path=y ++project_name=p", "project_name=p"),
        ("'++data_paths=[a b,c]'", "'data_paths=[a b,c]'"),
        ("~evaluators", "'~evaluators'"),
    ],
)
def test_the_command_to_resume_repeats_what_was_typed(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", ["here/pretrain.py", *shlex.split(typed)])
    config = check(PretrainConfig, RUN | {"arch": {"name": TRM} | ARCH, "data_paths": ["a"]})
    command = PuzzleJob(config).resume_command(Path("checkpoints/p/a run"))
    wanted = f"python here/pretrain.py {expected} 'checkpoint_path=checkpoints/p/a run' resume=true"
    assert shlex.split(command) == shlex.split(wanted)
