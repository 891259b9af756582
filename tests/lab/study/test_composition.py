import json

import pytest

from dataset.common import text_metadata
from engine.build.puzzles import build_recursive_model
from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from lab.study.command import main
from lab.study.composition import FAMILIES, LOOPED, SWEEP, Composition
from lab.study.composition_page import depths_of, spread
from lab.study.trials import Trial


def study(variants=None, seeds=3):
    return Composition(variants, seeds, [0.5, 2.0], [])


def row_of(trial, right=0.5):
    """A made-up result; `right` is its validation accuracy, and a few other numbers are far from it."""
    passes = int(next(w for w in study().words(trial) if w.startswith("arch.halt_max_steps")).partition("=")[2])
    evaluated = int(next(w for w in study().words(trial) if w.startswith("eval.halt_max_steps")).partition("=")[2])
    metrics = {
        name: {f"depth_{d}/{metric}": value for d in range(1, evaluated + 1) for metric, value in numbers.items()}
        for name, numbers in {
            "validation": {"exact_accuracy": right, "token_loss": 1.0},
            **{f"id{hops}": {"exact_accuracy": 1 - right, "token_loss": 1.0} for hops in range(2, 7)},
            "ood2": {"exact_accuracy": 1 - right, "token_loss": 1.0},
        }.items()
    }
    facts = {"parameters_trunk": 1000, "steps": 10, "seconds": 30.0, "cpu_seconds": 24.0, "depth": passes}
    return {**vars(trial), "settings": list(trial.settings), **facts, "metrics": metrics}


def swept(best):
    """Results of the whole sweep, in which the point `best[family]` is the best one."""
    return [
        row_of(trial, 0.9 if trial.settings == best.get(name, SWEEP[0]) else 0.4)
        for name in FAMILIES
        for trial in study().sweep(name)
    ]


def test_nothing_but_the_sweep_is_known_before_it_is_done():
    trials = study().trials([])
    known = [trial for trial in trials if trial.settings is not None]
    assert len(known) == len(FAMILIES) * len(SWEEP) and {trial.seed for trial in known} == {0}
    assert len(set(trials)) < len(trials)  # the looped model is in several tables and is trained once


def test_every_family_gets_the_settings_that_its_validation_set_prefers():
    best = {LOOPED: SWEEP[1], "dense, 4 layers": SWEEP[2]}
    trials = study().trials(swept(best))
    for name, settings in best.items():
        later = [trial for trial in trials if trial.variant == name and trial.seed]
        assert {trial.settings for trial in later} >= {settings} and {trial.seed for trial in later} == {1, 2, 3}
        assert 2e12 in {trial.budget for trial in later}
    assert all(trial.settings is not None for trial in trials)


def test_no_reported_run_is_of_the_world_in_which_settings_were_chosen():
    rows = swept({})
    blocks = study().blocks({Trial.of(row): row for row in rows})
    assert all(trial.seed for lines in blocks[1:] for trials in lines.values() for trial in trials)


def test_the_best_trm_alone_runs_for_longer():
    rows = swept({})
    for row in rows:
        if row["variant"] == "TRM H1 L3":
            for name in list(row["metrics"]["validation"]):
                row["metrics"]["validation"][name] = 0.95
    blocks = study().blocks({Trial.of(row): row for row in rows})
    assert [name for name in blocks.long if name.startswith("TRM")] == ["TRM H1 L3"]


def test_options_change_one_thing_of_a_family():
    plain = study()
    trials = plain.blocks({Trial.of(row): row for row in swept({LOOPED: SWEEP[1]})}).options
    for name, found in trials.items():
        assert {trial.seed for trial in found} == {1, 2}
        if name not in FAMILIES:
            (base,) = [base for base in FAMILIES if base == plain.options[name]]
            changed = set(plain.words(found[0])) - set(plain.words(trials[base][0]))
            more_layers = {"arch.H_layers=2", "arch.halt_max_steps=2"}  # as many calls of a layer
            assert len(changed) == 1 or changed == more_layers, name


def test_a_choice_of_variants_needs_the_looped_model_only_for_its_options():
    assert study(["dense, 2 layers"]).families == ["dense, 2 layers"]
    assert study([f"{LOOPED}, untied embeddings"]).families == [LOOPED]
    with pytest.raises(ValueError, match="nope"):
        study(["nope"])


def test_the_section_has_every_table_and_pictures(tmp_path):
    rows = swept({})
    rows += [row_of(trial) for trial in dict.fromkeys(study().trials(rows)) if trial.seed]
    text = study().section(rows, tmp_path / "page.md")
    assert "500 GFLOP" in text and "2,000 GFLOP" in text and "**0.90**" in text
    assert f"| {LOOPED} | 1,000 | 0.002 | 10 | 24 | 4 |" in text
    assert "|  |  |  |  |  | 6 |" in text  # the same weights with more passes
    for name in ("page_hops.png", "page_passes.png"):
        assert name in text and (tmp_path / name).stat().st_size > 1000


def test_a_run_that_diverged_is_never_right():
    trial = study().sweep(LOOPED)[0]
    rows = [row_of(t, 0.1) for t in study().sweep(LOOPED)[1:]] + [row_of(trial) | {"metrics": {}}]
    assert study([LOOPED]).trials(rows)[-1].settings == SWEEP[1]


def test_depths_of_a_model_that_has_one_pass_only():
    assert depths_of(row_of(Trial("dense, 2 layers", 0, 5e11))) == [1]
    assert depths_of(row_of(Trial("TRM H2 L1", 0, 5e11))) == [2, 3]
    assert depths_of(row_of(Trial("TRM H1 L3", 0, 5e11))) == [1, 2]


def test_a_spread_is_shown_where_there_is_one():
    assert spread([0.5, 1.0]) == "0.75 (0.50 to 1.00)" and spread([0.5, 0.5]) == "0.50" and spread([None]) == "-"


def test_every_variant_is_a_valid_config():
    for name in Composition.variants:
        words = study().words(Trial(name, 1, 1.0, SWEEP[0]))
        config = check(InstructConfig, composed("cfg_pretrain_instruct", words))
        build_recursive_model(config.arch, text_metadata(32, 100, 0), config.global_batch_size)
        assert config.lr == 0.002 and config.seed == config.dataset.seed == 1, name


@pytest.mark.slow
def test_one_command_trains_what_is_missing_and_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMORCA_TQDM", "0")
    results, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    page.write_text("mine\n<!-- composition: begin -->\nold\n<!-- composition: end -->\nkept\n")
    flags = ["--seeds", "1", "--tflop", "2e-3", "4e-3", "--variants", LOOPED, "--results", str(results)]
    flags += ["--page", str(page), "--overrides", "arch.hidden_size=32", "arch.num_heads=2", "device=cpu"]
    flags += ["dataset.composition.people=8", "dataset.composition.questions=60", f"dataset.data_dir={tmp_path}"]
    main("composition", arguments=flags)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == len(SWEEP) + 2 and {row["seed"] for row in rows} == {0, 1}
    assert "depth_12/exact_accuracy" in rows[0]["metrics"]["id6"]
    steps = {row["budget"]: row["steps"] for row in rows}
    assert steps[4e9] > steps[2e9] > 0
    assert page.read_text().startswith("mine\n") and "old" not in page.read_text()
    results.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:-1]))
    main("composition", arguments=flags)
    assert len(results.read_text().splitlines()) == len(rows)
