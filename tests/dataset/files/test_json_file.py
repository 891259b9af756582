"""Small JSON files: what is wrong with one is told with its name and the remedy."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from dataset.files.json_file import read_json, read_model


class Facts(BaseModel):
    rows: int
    name: str


def test_lists_objects_and_models_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"rows": 3, "name": "é"}', encoding="utf-8")
    assert read_json(file, dict, "Go.") == {"rows": 3, "name": "é"}
    assert read_model(file, Facts, "Go.") == Facts(rows=3, name="é")


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "not exist"), (b"{", "JSON"), (b"[]", "list"), (b"\xff", "JSON")]
)
def test_what_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json.*{problem}.*Fetch it\."):
        read_json(tmp_path / "a.json", dict, "Fetch it.")


def test_all_problems_of_a_model_are_told_at_once(tmp_path: Path) -> None:
    class OwnError(ValueError):
        pass

    (tmp_path / "a.json").write_text('{"rows": "many"}')
    with pytest.raises(OwnError, match=r"a\.json.*rows: .*; name: .*Build it\."):
        read_model(tmp_path / "a.json", Facts, "Build it.", OwnError)
