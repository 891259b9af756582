"""The study of Sudoku: what its networks have in common, how rates are chosen, its table, and one command for all."""

import json

import pytest

from dataset.common import text_metadata
from engine.build.puzzles import build_model
from engine.config.check import check
from engine.config.compose import composed
from engine.config.schema import PretrainConfig
from engine.train.opening import parameter_counts
from lab.study import run
from lab.study.command import main
from lab.study.puzzles import LOOPED, SWEEP, SWEPT_SHARE, TRM, Puzzles
from lab.study.trials import Trial
from models.flops import training_flops
from tests.tiny import CPU, write_sudoku

TINY = ["arch.hidden_size=32", "arch.num_heads=2", "arch.halt_max_steps=2", "global_batch_size=4", "device=cpu"]
METADATA = text_metadata(36, 8, pad_id=0)


def study(variants=None, overrides=(), data="data"):
    return Puzzles(variants, seeds=2, tflop=1.0, overrides=overrides, data=data)


def heads_of(found):
    for name in found.variants:
        config = check(PretrainConfig, composed("cfg_pretrain", found.words(Trial(name, 1, 1.0, SWEEP[0]))))
        yield name, config, build_model(config.arch, METADATA, config.global_batch_size, CPU)


def test_the_looped_network_has_equal_parameters_and_compute_and_each_plain_one_has_one_of_them():
    sizes, flops = {}, {}
    for name, config, head in heads_of(study()):
        sizes[name] = parameter_counts(head)["parameters_trunk"]
        flops[name] = training_flops(head.model.inner, 8, 8 * 36)
        is_plain = name.startswith("plain")
        assert (config.eval.halt_max_steps, head.model.config.halt_max_steps == 1) == (1 if is_plain else 16, is_plain)
        assert config.disguises and config.eval.validation_split, name
    few, many = "plain, 2 layers", "plain, 6 layers"
    assert sizes[TRM] == sizes[LOOPED] == sizes[few] < sizes[many]
    assert flops[TRM] == flops[LOOPED] == flops[many] > flops[few]


def test_networks_differ_in_their_architecture_alone():
    options = {}
    for name, config, _ in heads_of(study()):
        options[name] = config.model_dump(exclude={"arch", "eval"}) | {"loss": config.arch.loss}
    assert all(found == options[TRM] for found in options.values())


def row_of(trial, right, steps):
    """A made-up result that gets better by a hundredth with every step; the two sets are far apart."""
    metrics = {
        name: {
            f"depth_{step}/{metric}": value
            for step in range(1, steps + 1)
            for metric, value in (("exact_accuracy", accuracy + step / 100), ("token_loss", 1.0))
        }
        for name, accuracy in (("all", 0.7 - right), ("validation", right))
    }
    facts = {"parameters_trunk": 1000, "steps": 10, "flops_per_step": 6.0, "seconds": 30.0, "cpu_seconds": 24.0}
    depth = 1 if steps == 1 else 8
    return vars(trial) | facts | {"settings": list(trial.settings), "depth": depth, "metrics": metrics}


def swept(best):
    return [
        row_of(trial, 0.6 if trial.settings[:1] == best[trial.variant] else 0.2, 1 if "plain" in trial.variant else 16)
        for trial in study().trials([])
        if trial.settings is not None
    ]


@pytest.fixture
def rows():
    names = [TRM, LOOPED, "plain, 6 layers", "plain, 2 layers"]
    found = swept(dict(zip(names, [SWEEP[0], SWEEP[1], SWEEP[2], SWEEP[0]], strict=True)))
    reported = [trial for trial in study().trials(found) if trial.seed]
    return found + [row_of(trial, 0.1 * trial.seed, 1 if "plain" in trial.variant else 16) for trial in reported]


def test_rates_are_chosen_by_validation_with_a_seed_and_a_budget_of_their_own(rows):
    trials = study().trials(rows)
    sweep, reported = ([trial for trial in trials if bool(trial.seed) == is_reported] for is_reported in (False, True))
    assert {trial.budget for trial in sweep} == {SWEPT_SHARE * 1e12} and len(sweep) == 4 * len(SWEEP)
    assert {trial.budget for trial in reported} == {1e12} and {trial.seed for trial in reported} == {1, 2}
    chosen = {trial.variant: trial.settings[:1] for trial in reported}
    assert chosen[TRM] == SWEEP[0] and chosen[LOOPED] == SWEEP[1] and chosen["plain, 6 layers"] == SWEEP[2]
    unknown = [trial for trial in study().trials(rows[:1]) if trial.seed]
    assert unknown and all(trial.settings is None for trial in unknown)


def test_the_table_has_every_network_by_supervision_step_and_the_picture_is_drawn(rows, tmp_path):
    page = tmp_path / "page.md"
    text = study().section(rows, page)
    of_results, _, of_rates = text.partition("![")
    lines = {line.split(" | ")[0].strip("| "): line for line in of_results.splitlines() if line.startswith("| ")}
    assert "| step 1 | step 2 | step 4 | step 8 | step 12 | step 16 |" in lines["network"]
    assert lines[TRM].startswith("| TRM | 1,000 | 0.002 | 10 | 24 | 0.56 (0.51 to 0.61) |")
    assert lines[TRM].endswith("| 0.71 (0.66 to 0.76) |")
    assert lines["plain, 6 layers"].endswith("| 0.008 | 10 | 24 | 0.56 (0.51 to 0.61) | - | - | - | - | - |")
    assert "| TRM | **0.68** | 0.28 | 0.28 |" in of_rates
    assert page.with_suffix(".png").stat().st_size > 5000


def test_a_run_that_diverged_solves_nothing(rows, tmp_path):
    next(row for row in rows if row["variant"] == TRM and row["seed"])["metrics"] = {}
    assert "(0.00 to 0.51)" in study().section(rows, tmp_path / "page.md")


def test_results_of_other_options_are_not_taken():
    ours, others = (
        {trial for trial in study(overrides=words).trials([]) if trial.settings is not None}
        for words in ([], ["arch.hidden_size=64"])
    )
    assert ours and not ours & others


def test_puzzles_that_cannot_be_made_end_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.study.puzzles.MADE", ("--generate", "5x5"))
    with pytest.raises(SystemExit, match="5x5"):
        main("puzzles", arguments=["--data", str(tmp_path / "d"), "--results", str(tmp_path / "r.jsonl")])
    assert not (tmp_path / "r.jsonl").exists()


def test_puzzles_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.study.puzzles.MADE", ("--generate", "4x4", "--count", "20", "--num-workers", "1"))
    found = study(data=tmp_path / "made")
    found.prepare()
    written = (tmp_path / "made" / "train" / "dataset.json").stat().st_mtime_ns
    monkeypatch.setattr("lab.study.puzzles.MADE", ("--generate", "4x4", "--count", "30", "--num-workers", "1"))
    found.prepare()  # what is there is taken, whatever it is
    assert (tmp_path / "made" / "train" / "dataset.json").stat().st_mtime_ns == written


def test_one_command_trains_what_is_missing_and_writes_the_page(tmp_path, capsys):
    results, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    flags = ["--seeds", "1", "--tflop", "1e-3", "--jobs", "1", "--results", str(results), "--page", str(page)]
    flags += ["--data", str(write_sudoku(tmp_path / "data")), "--variants", TRM, "plain, 6 layers"]
    main("puzzles", arguments=[*flags, "--overrides", *TINY])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 2 * (len(SWEEP) + 1) and {row["seed"] for row in rows} == {0, 1}
    found = {row["variant"]: row for row in rows if row["seed"]}
    assert set(found[TRM]["metrics"]) == {"all", "validation"}
    steps = {name: {key for key in row["metrics"]["all"] if key.startswith("depth")} for name, row in found.items()}
    assert steps[TRM] == {
        f"depth_{step}/{metric}" for step in (1, 2, 3, 4) for metric in ("exact_accuracy", "token_loss")
    }
    assert steps["plain, 6 layers"] == {"depth_1/exact_accuracy", "depth_1/token_loss"}
    assert found[TRM]["steps"] == found["plain, 6 layers"]["steps"] > 0
    assert abs(found[TRM]["steps"] * found[TRM]["flops_per_step"] / 1e9 - 1) < 0.2
    assert page.read_text().startswith("# Recursion on puzzles") and page.with_suffix(".png").exists()
    assert capsys.readouterr().out.strip() == str(page)
    assert run.read_results(results) == rows
    main("puzzles", arguments=[*flags, "--overrides", *TINY])
    assert len(results.read_text().splitlines()) == len(rows)
