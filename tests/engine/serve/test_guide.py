"""Every example of docs/serving.md is typed here, against a running server."""

import io
import json
import re
import shutil
import subprocess
from contextlib import redirect_stdout

import pytest

from tests.test_docs import documented_commands
from tests.tiny import ROOT

GUIDE = ROOT / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_curl_commands_of_the_guide_are_answered(started):
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    here, asked = f"http://127.0.0.1:{started()}", []
    for command in documented_commands([GUIDE]):
        if command.startswith("curl "):
            words = ["bash", "-c", f"{command.replace(ADDRESS, here)} --silent --show-error --fail"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            asked.append(json.loads(done.stdout)["object"])
    assert asked == ["chat.completion", "text_completion"]


def test_the_python_of_the_guide_prints_an_answer(started):
    pytest.importorskip("openai")
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    with redirect_stdout(io.StringIO()) as said:
        exec(program.replace(ADDRESS, f"http://127.0.0.1:{started()}"), {})  # noqa: S102 - the guide's own
    assert said.getvalue().strip()
