"""Starts the cases in a process of their own and reads what came of them."""

import json
import subprocess
import sys
from typing import Any

from tests.tiny import ROOT

Results = dict[str, dict[str, Any]]


def results(*words: str, seconds: float = 570) -> dict[str, Results]:
    """By kind of device what became of each case; the end of a process that did not get so far is a case too."""
    command = [sys.executable, "-m", "tests.gpu.drive", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {"code": done.returncode, "err": done.stderr[-3000:]}
    found: dict[str, Results] = {kind: {"the process": ended} for kind in ("cuda", "mps")}
    for line in lines:
        found[line["kind"]][line["case"]] = line
    return found


def check_equal(found: Results, name: str, margin: float = 1.0) -> dict[str, Any]:
    """The result of a case whose numbers are the CPU's, within so many times its tolerance."""
    result = found.get(name) or {"problem": str(found["the process"])}
    assert "problem" not in result, result["problem"]
    assert result["worst"] <= margin * result["tolerance"], f"{result['where']} differs by {result['worst']}"
    return result
