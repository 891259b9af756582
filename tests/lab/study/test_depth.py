"""The demonstration of depth: what it trains, its sentence and its table."""

import pytest

from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from lab.study.depth import DENSE, LOOPED, Depth
from lab.study.trials import Trial


def study() -> Depth:
    return Depth("symbols", seeds=2, tflop=1.0)


def row_of(trial: Trial, rights: dict[str, float]) -> dict:
    """A result in which a question of k hops is right from pass k on, so often; `dense` has no use for passes."""
    is_looped = trial.variant == LOOPED
    metrics = {
        name: {
            f"depth_{depth}/exact_accuracy": right + trial.seed / 100
            if depth >= int(name[-1]) or not is_looped
            else 0.0
            for depth in range(1, 7)
        }
        for name, right in rights.items()
    }
    facts = {"parameters_trunk": 100 if is_looped else 400, "depth": 4 if is_looped else 1}
    return {**vars(trial), "settings": list(trial.settings or ()), **facts, "metrics": metrics}


@pytest.fixture
def rows() -> list[dict]:
    looped, dense = {"id2": 0.9, "id4": 0.8, "id6": 0.7, "ood2": 0.6}, {"id2": 0.5, "id4": 0.4, "id6": 0.3, "ood2": 0.2}
    return [row_of(trial, looped if trial.variant == LOOPED else dense) for trial in study().trials([])]


def test_recipe_and_twin_are_trained_in_the_same_worlds_for_equal_compute():
    trials = study().trials([])
    assert {(trial.variant, trial.seed) for trial in trials} == {
        (name, seed) for name in (LOOPED, DENSE) for seed in (0, 1)
    }
    assert len({trial.budget for trial in trials}) == 1
    configs = {
        trial.variant: check(InstructConfig, composed("cfg_pretrain_instruct", study().words(trial)))
        for trial in trials
    }
    looped, dense = configs[LOOPED].arch.options, configs[DENSE].arch.options
    assert looped["H_layers"] * looped["halt_max_steps"] == dense["H_layers"] * dense["halt_max_steps"]
    assert configs[LOOPED].dataset == configs[DENSE].dataset


def test_the_sentence_compares_at_trained_and_at_longer_questions(rows):
    said = study().conclusion(rows)
    lines = {line.split(":")[0].split(",")[0]: line for line in said.splitlines()[1:]}
    assert "0.81 (0.80 to 0.81) against 0.41 (0.40 to 0.41)" in lines["- questions of 4 hops"]
    assert (
        "0.70 (0.70 to 0.71) against 0.30 (0.30 to 0.31)" in lines["- of 6 hops"]
        and "2 more passes" in lines["- of 6 hops"]
    )
    assert "0.60 (0.60 to 0.61) against 0.21" in said and "4 times the weights" in said


def test_the_table_has_every_set_and_every_pass_and_the_picture_is_drawn(rows, tmp_path):
    page = tmp_path / "depth.md"
    text = study().section(rows, page)
    (line,) = [line for line in text.splitlines() if line.startswith("| id6")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == ["0.00"] * 5 and cells[6].startswith("0.7") and cells[7].startswith("0.3")
    assert page.with_suffix(".png").stat().st_size > 5000


def test_a_run_that_diverged_is_wrong_everywhere_and_all_of_them_are_an_error(rows, tmp_path):
    looped = [row for row in rows if row["variant"] == LOOPED]
    looped[0]["metrics"] = {}
    assert "0.41 (0.00 to 0.81)" in study().conclusion(rows)
    study().section(rows, tmp_path / "depth.md")
    looped[1]["metrics"] = {}
    with pytest.raises(ValueError, match="diverged"):
        study().conclusion(rows)


def test_results_of_another_recipe_are_not_taken(monkeypatch):
    before = study().trials([])
    monkeypatch.setattr("lab.study.depth.composed", lambda name, words: {"lr": 7.0, "words": words})
    assert not set(before) & set(study().trials([]))
