import pytest

from engine.config.compose import composed
from lab.study import VARIANTS, study

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
    settings = {
        "seeds": 1,
        "tflop": 2e-3,
        "overrides": [*TINY, f"dataset.data_dir={tmp_path}", "compile=false", "device=cpu"],
        "results": results,
        "page": page,
    }
    names = ["dense, 2 layers", "TRM H1 L2", "TRM H1 L2, carry, 2 steps", "TRM H2 L2, curriculum"]
    study(variants=names, **settings)
    text = page.read_text()
    assert text.startswith("# Mine\n\nkept") and text.endswith("kept too\n") and "old" not in text
    assert all(f"| {name} |" in text for name in names)
    assert page.with_suffix(".png").stat().st_size > 1000

    rows = [line for line in results.read_text().splitlines() if line]
    assert len(rows) == 4
    steps = {name: int(text.split(f"| {name} |")[1].split("|")[1]) for name in names}
    assert steps["dense, 2 layers"] > steps["TRM H2 L2, curriculum"] > 0  # a dearer step, fewer of them

    study(variants=names, **settings)  # nothing is trained twice
    assert len(results.read_text().splitlines()) == 4


def test_an_unknown_variant_is_named(tmp_path):
    with pytest.raises(ValueError, match="nope.*dense, 2 layers"):
        study(variants=["nope"], tflop=1.0, seeds=1, overrides=[], results=tmp_path / "r", page=tmp_path / "p")


def test_every_variant_is_a_valid_config():
    for words in VARIANTS.values():
        assert composed("cfg_pretrain_instruct", words)["arch"]["causal"] is True
