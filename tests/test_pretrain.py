"""The training program as a process: kills, signals, and what its command line accepts."""

import shlex
import signal

import pytest

from tests.tiny import (
    ROOT,
    assert_same_end,
    flags,
    halting_weights,
    logged,
    pretrain,
    run_python,
    signal_at_step,
    start,
    steps_on_disk,
    write_sudoku,
)

# Everything that a resumed run must pick up again, and the plainest run there is.
RICH = {
    "arch": {"puzzle_emb_ndim": 32, "halt_exploration_prob": 0.5},
    "ema": True,
    "dataloader_workers": 1,
    "gradient_accumulation_steps": 2,
    "lr_min_ratio": 0.1,
}
PLAIN = {"arch": {"no_ACT_continue": False}, "optimizer": "adamw", "grad_clip": 1.0}
MUON = {"optimizer": "muon", "lr": 3e-3}


@pytest.mark.parametrize("name", ["rich", "plain", "muon"])
def test_a_run_killed_twice_ends_as_if_it_had_not_been(name, tmp_path):
    data = write_sudoku(tmp_path / "data", identifiers=6)
    options = {"rich": RICH, "plain": PLAIN, "muon": MUON}[name] | {
        "epochs": 18,
        "eval_interval": 6,
        "checkpoint_interval": 7,
    }
    if name == "rich":
        options["load_checkpoint"] = str(halting_weights(tmp_path / "start.pt", data, options["arch"]))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(flags(data, whole, **options)).code == 0

    command = flags(data, broken, **options)
    for words, step in ((command, 16), ([*command, "resume=true"], 30)):
        assert signal_at_step(start(words, tmp_path), broken, step, signal.SIGKILL).code == -signal.SIGKILL
    assert 7 <= max(steps_on_disk(broken)) < 54, "the run must have been killed in its middle"
    assert pretrain([*command, "resume=true"]).code == 0

    assert logged(broken) == logged(whole)
    assert_same_end(whole, broken)
    if name == "rich":
        halting = [line["train/steps"] for line in logged(whole) if line.get("train/count")]
        assert len(halting) > 30 and not all(steps == int(steps) for steps in halting), "exploration never mattered"


def test_sigterm_saves_and_tells_how_to_go_on(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    process = start(flags(data, run_dir, epochs=90, **{"eval_interval": 90}), ROOT)
    stopped = signal_at_step(process, run_dir, 5, signal.SIGTERM)
    assert stopped.code == 143, stopped.err
    (step,) = steps_on_disk(run_dir)
    assert 5 <= step < 270
    assert logged(run_dir)[-1]["step"] == step
    assert stopped.out == "", "no result was reached"

    (told,) = [line for line in stopped.err.splitlines() if "resume with: " in line]
    words = shlex.split(told.partition("resume with: ")[2])
    assert words[0] == "python"
    typed = run_python(words[1:], ROOT)
    assert typed.code == 0, typed.err
    assert [line["step"] for line in logged(run_dir)] == [*range(1, 271), 270]
    assert f"resumed from {run_dir / f'step_{step}'}" in typed.err
    assert typed.report["all"]["steps"] == 3.0


def test_ctrl_c_stops_the_loader_workers_too(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    process = start(flags(data, run_dir, epochs=90, eval_interval=90, dataloader_workers=2), tmp_path)
    stopped = signal_at_step(process, run_dir, 5, signal.SIGINT)
    assert stopped.code == 130, stopped.err
    assert "resume with: " in stopped.err and "Traceback" not in stopped.err
    assert len(steps_on_disk(run_dir)) == 1


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, so that everything a run leaves behind can be seen."""
    monkeypatch.chdir(tmp_path)
    write_sudoku(tmp_path / "data" / "tiny")
    return tmp_path


def short(*words: str) -> list[str]:
    """A run of one step in the default place."""
    usual = [word for word in flags("data/tiny", "unused", max_steps=1) if not word.startswith("checkpoint_path=")]
    return [*usual, *words]


@pytest.mark.parametrize("word", ["run_name=x", "+run_name=x", "++run_name=x"])
def test_every_form_of_a_documented_option_works_and_leaves_only_the_run(elsewhere, word):
    ended = pretrain(short(word, "+project_name=p"))
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoints", "data"], "no outputs/ of Hydra"
    assert [path.parent.name for path in elsewhere.glob("checkpoints/p/*/config.yaml")] == ["x"]


def test_the_result_is_all_that_stdout_gets(elsewhere):
    ended = pretrain(short())
    assert ended.out.count("\n") == 1 and set(ended.report["all"]) >= {"accuracy", "exact_accuracy", "lm_loss", "steps"}
    assert "parameters: " in ended.err and "done: 1 steps" in ended.err


def test_unknown_keys_of_run_and_model_are_named_together_with_the_nearest_ones(elsewhere):
    ended = pretrain(short("lrr=1", "arch.hiden_size=64", "+arch.loss.los_type=x", "gradient_accumulation_steps=3"))
    assert ended.code == 1 and ended.out == ""
    told = ended.err[ended.err.index("error: ") :]
    assert "lrr: unknown key, did you mean lr?" in told
    assert "arch.hiden_size: unknown key, did you mean hidden_size?" in told
    assert "arch.loss.los_type: unknown key, did you mean loss_type?" in told
    assert "gradient_accumulation_steps" not in told  # whether options fit is looked at once each is known and right
    ended = pretrain(short("gradient_accumulation_steps=3"))
    assert ended.code == 1 and "gradient_accumulation_steps=3" in ended.err
    assert not (elsewhere / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["arch=trn"], "trm_singlez"),
        (
            ["arch.name=recursive_reasoning.trn@TinyRecursiveReasoningModel_ACTV1"],
            "did you mean 'recursive_reasoning.trm'",
        ),
        (["lr"], "Error parsing override 'lr'"),
        (["seed=${nothing}"], "Interpolation key 'nothing' not found"),
        (["arch.recursion=unrolled"], "arch.recursion='unrolled' is for text"),
    ],
)
def test_a_mistyped_command_line_is_refused_in_words(elsewhere, words, told):
    ended = pretrain(short(*words))
    assert ended.code == 1 and told in ended.err and "Traceback" not in ended.err
    assert not (elsewhere / "checkpoints").exists()


def test_a_recipe_brings_all_it_needs_but_the_data(elsewhere):
    ended = pretrain(["recipe=sudoku_4x4"])
    assert ended.code == 1
    assert "No data set at 'data/sudoku-4x4'" in ended.err
    assert "python -m dataset.build_sudoku_dataset --generate 4x4" in ended.err


def test_missing_data_of_another_puzzle_are_not_to_be_built_as_sudokus(elsewhere):
    ended = pretrain(["arch=trm"])
    assert ended.code == 1
    assert "'data/arc-aug-1000'" in ended.err and "docs/puzzles.md" in ended.err
    assert "--output-dir data/arc-aug-1000" not in ended.err


@pytest.mark.parametrize("arch", ["trm_singlez", "trm_hier6", "hrm", "transformers_baseline"])
def test_every_architecture_trains_evaluates_and_resumes(elsewhere, arch):
    layers = {"hrm": ["arch.H_layers=1"], "transformers_baseline": ["arch.H_layers=1", "arch.L_layers=0"]}
    words = [*short(f"arch={arch}", "run_name=x", "max_steps=2", "epochs=3"), *layers.get(arch, [])]
    assert pretrain(words).code == 0
    again = pretrain([word.replace("max_steps=2", "max_steps=4") for word in words] + ["resume=true"])
    assert again.code == 0, again.err
    assert "done: 2 steps" in again.err and again.report["all"]["steps"] == 3.0
