"""The page of files: what opens each kind of them is run on files that programs of this project have written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "tests" / "fixtures" / "written_before"
FOLDERS = ("distilled", "tuned/run", "unrolled/run", "carried/run", "puzzle", "chat")


def rows() -> list[tuple[str, str]]:
    """The patterns of the first column, each with the lines of the last one."""
    found = []
    for line in (ROOT / "docs" / "files.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and "<br>" in cells[2]:
            code = "\n".join(re.findall("`(.+?)`", cells[2].replace("<br>", " ")))
            found += [(name, code) for name in re.findall("`([^`]+)`", cells[0].split(" (")[0])]
    return found


def examples(pattern: str) -> list[Path]:
    """Files below the fixtures that a pattern names."""
    parts = re.split(r"(<[^>]+>|\*)", pattern)
    regex = "".join("[^/]+" if part.startswith(("<", "*")) else re.escape(part) for part in parts if part)
    files = [file for folder in FOLDERS for file in (WRITTEN / folder).rglob("*")]
    return [file for file in files if re.search(f"(^|/){regex}$", file.as_posix())]


def test_the_page_has_a_row_for_every_file_of_the_fixtures() -> None:
    named = {file for pattern, _ in rows() for file in examples(pattern)}
    left = [
        file for folder in FOLDERS for file in (WRITTEN / folder).rglob("*") if file.is_file() and file not in named
    ]
    assert [file.name for file in left if file.name not in ("adapter_config.json", "generation_config.json")] == []


@pytest.mark.parametrize(("pattern", "code"), rows(), ids=[pattern for pattern, _ in rows()])
def test_two_lines_open_it(pattern: str, code: str, tmp_path: Path) -> None:
    found = [file for file in examples(pattern) if "DIRECTORY" not in code or (file.parent / "config.json").exists()]
    if not found:  # the fixtures have none of these
        found = [tmp_path / "file"]
        found[0].write_text(json.dumps({"a": 1}) + "\n")
        if "safetensors" in code:
            from safetensors.numpy import save_file

            save_file({"preds": np.zeros(2)}, found[0])
    assert len(code.splitlines()) == 2
    scope = {"FILE": str(found[0]), "DIRECTORY": str(found[0].parent), "print": lambda text: None}
    exec(code, scope)  # noqa: S102 - our own page
    name = re.findall(r"^(\w+) = ", code, re.MULTILINE)[-1]
    assert scope[name] is not None
