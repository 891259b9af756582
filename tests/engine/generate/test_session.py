"""Saved conversations: what is read, and what is refused."""

import json
from pathlib import Path

import pytest

from engine.generate import session as room
from engine.generate.session import read_turns


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "nested"),
        ("[]", "list"),
        ("{}", "NoneType"),
        ('{"messages": "x"}', "str"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"messages": [{"role": "user", "content": 3}]}', "user"),
    ],
)
def test_a_file_that_is_not_a_conversation_is_refused(tmp_path, content, told):
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"talk.json.*{told}"):
        read_turns(file)


def test_a_conversation_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "talk.json"
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file.write_text(json.dumps(record))
    assert [(turn.role, turn.text) for turn in read_turns(file)] == [("user", "a"), ("assistant", "b")]


def test_a_device_is_not_read():
    with pytest.raises(ValueError, match="/dev/zero"):
        read_turns(Path("/dev/zero"))


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MAX_BYTES", 3)
    (tmp_path / "talk.json").write_text("{}  ")
    with pytest.raises(ValueError, match="4 bytes"):
        read_turns(tmp_path / "talk.json")
