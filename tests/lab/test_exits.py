"""What exit rules spend by hops: how the numbers are summed up, and the picture from a checkpoint's own rules."""

import json

import pytest

from engine.generate.exits import write_thresholds
from lab.exits import rank_correlation, summary, table
from tests.text_runs import train_text
from tests.tiny import run_door


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [1.0, 1.5, 30, 31]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(0.8944, abs=1e-4)
    assert rank_correlation([1, 2, 3], [6, 6, 6]) == 0


def test_a_way_of_answering_is_judged_by_facts_and_trained_kinds_of_chains():
    found = {
        "facts": {"hops": 1, "accuracy": 1.0, "passes": 1.0},
        "id2": {"hops": 2, "accuracy": 0.5, "passes": 2.0},
        "ood2": {"hops": 2, "accuracy": 0.0, "passes": 6.0},
    }
    assert summary({"kl": found}, "kl") == pytest.approx({"accuracy": 0.75, "passes": 1.5, "rank_correlation": 1.0})
    rows = table({"kl": found, "6": found}).splitlines()
    assert len(rows) == 4 and "0.50 (2.0)" in rows[2] and rows[3].startswith("| 6 passes")


def test_the_picture_and_its_numbers_come_from_the_checkpoints_rules(tmp_path):
    pytest.importorskip("matplotlib")
    world = {"people": 6, "relations": 2, "hops": 2, "longer": 0, "questions": 4, "held_out": 9}
    words = [f"dataset.composition.{name}={value}" for name, value in world.items()]
    words += ["recipe=composition", f"dataset.data_dir={tmp_path}", f"checkpoint_path={tmp_path / 'run'}", "device=cpu"]
    assert train_text([*words, "arch.hidden_size=32", "global_batch_size=4", "max_steps=2"]).code == 0
    plot = ("scripts/plot_exits.py", tmp_path / "run", "--output", tmp_path / "exits.png")
    ended = run_door(*plot)
    assert ended.code == 1 and "calibrate_exit.py" in ended.err
    rules = {"kl": {"threshold": 0.0}, "margin": {"threshold": 0.0}, "head": {"threshold": 2.0}}
    write_thresholds((tmp_path / "run" / "latest").resolve(), rules | {"steps": 3})
    ended = run_door(*plot)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "exits.json").read_text())
    assert list(report) == ["kl", "margin", "head", "1", "2", "3"] and (tmp_path / "exits.png").stat().st_size
    assert next(iter(report["kl"])) == "facts" and "id2" in report["kl"] and "validation" not in report["kl"]
    for way, passes in {"kl": 3, "margin": 1, "head": 3, "2": 2}.items():
        assert {found["passes"] for found in report[way].values()} == {passes}
    assert ended.out.splitlines()[-1].startswith("| 3 passes | 0.")
