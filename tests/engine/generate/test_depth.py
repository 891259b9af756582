"""A depth beyond the trained one: a notice unless the checkpoint's own evaluation shows that it helps."""

import json
from types import SimpleNamespace

import pytest

from engine.generate.depth import evaluation_file, options_for
from engine.generate.options import DecodeOptions, ReplyOptions

TRAINED = 4


@pytest.fixture
def loaded(tmp_path):
    config = SimpleNamespace(halt_max_steps=TRAINED)
    return SimpleNamespace(path=tmp_path / "run" / "step_7", model=SimpleNamespace(config=config))


def asked(depth):
    return ReplyOptions(decode=DecodeOptions(depth=depth))


def evaluated(loaded, **sets):
    """An evaluation whose sets have these token accuracies by depth."""
    file = evaluation_file(loaded.path, "test")
    file.parent.mkdir(parents=True)
    by_set = {
        name: {"by_depth": {str(depth): {"token_accuracy": value} for depth, value in depths.items()}}
        for name, depths in sets.items()
    }
    file.write_text(json.dumps(by_set))


@pytest.mark.parametrize("depth", [None, 1, TRAINED])
def test_a_trained_depth_needs_no_word(depth, loaded, capsys):
    assert options_for(loaded, asked(depth)) == asked(depth) and not capsys.readouterr().err


def test_a_depth_that_was_never_evaluated_is_noticed_with_the_command_that_does(loaded, capsys):
    assert options_for(loaded, asked(6)) == asked(6)
    told = capsys.readouterr()
    assert "depth=6" in told.err and f"--checkpoint {loaded.path} --depths 4,6" in told.err and not told.out
    evaluated(loaded, test={4: 0.5, 5: 0.9})
    options_for(loaded, asked(6))
    assert "--depths 4,6" in capsys.readouterr().err


def test_a_depth_that_helps_some_sets_more_than_it_harms_others_is_taken_in_silence(loaded, capsys):
    evaluated(loaded, id4={4: 1.0, 6: 0.9}, id6={4: 0.1, 6: 1.0})
    options_for(loaded, asked(6))
    assert not capsys.readouterr().err


def test_the_evaluation_of_the_run_itself_counts_too(loaded, capsys):
    lines = [
        {"step": 6, "test/depth_4/token_accuracy": 0.9, "test/depth_6/token_accuracy": 0.1},
        {"step": 7, "train/depth_4/token_accuracy": 0.9, "train/depth_6/token_accuracy": 0.1},
        {"step": 7, "test/depth_4/token_accuracy": 0.4, "test/depth_6/token_accuracy": 0.5, "test/token_accuracy": 0.5},
    ]
    loaded.path.parent.mkdir()
    (loaded.path.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options_for(loaded, asked(6))
    assert not capsys.readouterr().err
    options_for(loaded, asked(8))
    assert "--depths 4,8" in capsys.readouterr().err


@pytest.mark.parametrize("deep", [0.5, 0.4])
def test_a_depth_that_does_not_help_is_noticed_with_both_numbers(deep, loaded, capsys):
    evaluated(loaded, test={4: 0.5, 12: deep})
    options_for(loaded, asked(12))
    told = capsys.readouterr().err
    assert "depth=12" in told and f"{deep:.3f}" in told and "0.500" in told
