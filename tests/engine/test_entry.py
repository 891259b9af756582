"""How programs start and end, whatever they do."""

import os
import subprocess
import sys

import pytest

from tests.tiny import ROOT
from trm import PROGRAMS

HEAVY = ("hydra", "numpy", "omegaconf", "pydantic", "torch")


@pytest.mark.parametrize("program", [path for path in PROGRAMS.values() if not path.startswith("dataset/")])
def test_ctrl_c_while_a_program_imports_is_no_traceback(program, tmp_path):
    for module in HEAVY:
        (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    ended = subprocess.run(
        [sys.executable, str(ROOT / program), "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode in (0, 130) and "Traceback" not in ended.stderr, ended.stderr
    assert (ended.returncode == 130) == ("interrupted" in ended.stderr)
