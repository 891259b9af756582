import json

import pytest

from engine.config.compose import composed
from lab.study.command import main
from lab.study.conversations import VARIANTS

TINY = [
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "global_batch_size=4",
    "dataset.sample_size=300",
    "dataset.seq_len=64",
]


def test_variants_get_equal_compute_and_a_row_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLIMORCA_TQDM", "0")
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    page.write_text("# Mine\n\nkept\n\n<!-- study: begin -->\nold\n<!-- study: end -->\nkept too\n")
    names = ["dense, 2 layers", "TRM H1 L2", "TRM H1 L2, carry, 2 steps", "TRM H2 L2, curriculum"]
    flags = ["--seeds", "1", "--tflop", "2e-3", "--results", str(results), "--page", str(page), "--jobs", "1"]
    flags += ["--overrides", *TINY, f"dataset.data_dir={tmp_path}", "compile=false", "device=cpu"]
    main("conversations", arguments=["--variants", *names, *flags])
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert text.startswith("# Mine\n\nkept") and text.endswith("kept too\n") and "old" not in text
    assert all(f"| {name} |" in text for name in names)
    assert page.with_suffix(".png").stat().st_size > 1000

    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["variant"] for row in rows] == names
    assert all(row["metrics"]["exact_accuracy"] >= 0 and row["budget"] == 2e9 for row in rows)
    steps = {row["variant"]: row["steps"] for row in rows}
    assert steps["dense, 2 layers"] > steps["TRM H2 L2, curriculum"] > 0  # a dearer step, fewer of them
    assert not (tmp_path / "results_runs").exists()

    main("conversations", arguments=["--variants", *names, *flags])  # nothing is trained twice
    assert len(results.read_text().splitlines()) == 4


def test_the_table_is_of_one_budget_and_keeps_what_older_versions_wrote(tmp_path, capsys):
    metrics = {"exact_accuracy": 0.25, "token_loss": 1.0, "depth_1/exact_accuracy": 0.25}
    facts = {"parameters_trunk": 10, "steps": 2, "flops_per_step": 1e6, "seconds": 60.0, "metrics": metrics}
    old = {"variant": "TRM H1 L1", "seed": 0, "budget": 1e9} | facts
    longer = {"variant": "TRM H1 L2", "seed": 0, "budget": 2e9} | facts
    results, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    results.write_text(json.dumps(old) + "\n" + json.dumps(longer) + "\n")
    flags = ["--variants", "TRM H1 L1", "--seeds", "1", "--tflop", "0.001", "--jobs", "1"]
    main("conversations", arguments=[*flags, "--results", str(results), "--page", str(page)])
    assert "| TRM H1 L1 |" in page.read_text() and "TRM H1 L2" not in page.read_text()


def test_an_unknown_variant_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nope.*dense, 2 layers"):
        main("conversations", arguments=["--variants", "nope", "--results", str(tmp_path / "r")])


@pytest.mark.parametrize("flag", [("--tflop", "0"), ("--seeds", "0"), ("--jobs", "0")])
def test_amounts_must_be_positive(flag, capsys):
    with pytest.raises(SystemExit):
        main("conversations", arguments=[*flag])
    assert flag[0] in capsys.readouterr().err


def test_every_variant_is_a_valid_config():
    for words in VARIANTS.values():
        assert composed("cfg_pretrain_instruct", words)["arch"]["causal"] is True
