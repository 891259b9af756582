"""The table of waits and launches lets through what it holds, and names what is more."""

import json

import pytest

from tests.gpu import table

COMMITTED = json.loads(table.TABLE.read_text())
STEP = {"times": 2, "waits": {"a.py: x.item() (read)": 2}, "lines": {"a.py: x.item() (read)": 7}, "launches": 200}


@pytest.fixture(autouse=True)
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "TABLE", tmp_path / "waits.json")
    table.write_table({"measured: a step": STEP, "another case": {}})


def test_what_was_accepted_passes_and_so_does_less():
    assert json.loads(table.TABLE.read_text()) == {
        "measured: a step": {"waits": {"a.py: x.item() (read)": 1.0}, "launches": 100}
    }
    for fewer in (STEP, STEP | {"waits": {}}, STEP | {"launches": 100}, STEP | {"launches": 205}):
        assert table.too_many("measured: a step", fewer) == []


def test_a_wait_more_is_named_with_its_line():
    waits = STEP["waits"] | {"b.py: y.tolist() (read)": 2}
    (said,) = table.too_many("measured: a step", STEP | {"waits": waits, "lines": dict.fromkeys(waits, 9)})
    assert "b.py" in said and "line 9" in said


def test_a_wait_on_a_line_that_was_rewritten_is_the_same_wait():
    rewritten = {"a.py: z.item() (read)": 2}
    assert table.too_many("measured: a step", STEP | {"waits": rewritten, "lines": dict.fromkeys(rewritten, 7)}) == []


def test_more_launches_fail():
    (said,) = table.too_many("measured: a step", STEP | {"launches": 210})
    assert "launches: 105, 100" in said


def test_a_case_that_failed_cannot_be_accepted():
    with pytest.raises(ValueError, match="no such tensor"):
        table.write_table({"measured: a step": {"problem": "no such tensor"}})


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_table_allows_one_wait_a_step_and_a_token(name):
    assert sum(COMMITTED[name]["waits"].values()) <= 1
