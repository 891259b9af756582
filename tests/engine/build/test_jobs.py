"""What Hydra configures as a run: the command that resumes it, and options that are fitted to its length."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.build.jobs import PuzzleJob, epochs_of
from engine.build.text import fitting_batch_size
from engine.checkpoints.load import Checkpoint
from engine.config.check import check
from engine.config.schema import PretrainConfig
from tests.tiny import ARCH, CPU, RUN, TRM


def job(chosen=None, **changes) -> PuzzleJob:
    config = check(PretrainConfig, RUN | {"arch": {"name": TRM} | ARCH, "data_paths": ["a"]} | changes)
    return PuzzleJob(config, given=chosen)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", ""),
        ("++arch.L_layers=1 ++lr=1e-4", "arch.L_layers=1 lr=1e-4"),
        ("arch=hrm recipe=sudoku_4x4", "arch=hrm recipe=sudoku_4x4"),
        ("++run_name=x ++resume=true ++checkpoint_path=y ++project_name=p", "project_name=p"),
        ("'++data_paths=[a b,c]'", "'data_paths=[a b,c]'"),
        ("~evaluators", "'~evaluators'"),
    ],
)
def test_the_command_to_resume_repeats_what_was_typed(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", ["here/pretrain.py", *shlex.split(typed)])
    command = job().resume_command(Path("checkpoints/p/a run"))
    wanted = f"python here/pretrain.py {expected} 'checkpoint_path=checkpoints/p/a run' resume=true"
    assert shlex.split(command) == shlex.split(wanted)


@pytest.mark.parametrize(
    ("chosen", "warmup", "steps", "used", "told"),
    [
        (set(), 1000, 100, 10, "note.*1000.* 10 steps"),
        ({"lr"}, 2, 9, 0, "note.* 0 steps"),
        ({"lr_warmup_steps"}, 1000, 100, 1000, "warning.*1000"),
        (None, 1000, 100, 1000, "warning.*1000"),
        (set(), 10, 100, 10, ""),
    ],
)
def test_only_a_warm_up_that_nobody_chose_is_cut_to_a_tenth_of_the_run(chosen, warmup, steps, used, told):
    said, run = [], job(chosen, lr_warmup_steps=warmup)
    run.fit_length(steps, said.append)
    assert run.config.lr_warmup_steps == used
    assert re.search(told, "".join(said)) and len(said) == bool(told)


def test_more_steps_than_the_epochs_have_are_announced():
    said = []
    job(max_steps=120).fit_length(27, said.append)
    assert "max_steps=120" in said[0] and "27 steps" in said[0] and "epochs" in said[0]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
def test_a_batch_is_as_large_as_asked_or_as_there_are_examples_to_share(examples, ranks, parts, asked):
    shares = ranks * parts
    options = mock.Mock(global_batch_size=asked * shares, gradient_accumulation_steps=parts, more_examples="dig")
    if examples < shares:
        with pytest.raises(ValueError, match=f"{examples} examples.*dig"):
            fitting_batch_size(options, replace(CPU, world_size=ranks), examples)
        return
    size = fitting_batch_size(options, replace(CPU, world_size=ranks), examples)
    assert size % shares == 0 and size <= min(examples, asked * shares)
    assert size == asked * shares or size > examples - shares


@pytest.mark.parametrize(
    ("former", "place", "now", "moved"),
    [
        ((20, 10), (3, 0), (30, 10), (3, 0)),
        ((25, 10), (4, 0), (40, 10), (3, 15)),
        ((4, 10), (2, 0), (20, 10), (1, 12)),
        ((4, None), (1, 12), (8, None), (1, 12)),
        ((4, None), (1, 7), (4, 1), (3, 1)),
        ((9, 3), (2, 4), (9, 3), None),
    ],
)
def test_a_place_in_the_data_is_the_same_under_other_epochs_and_intervals(former, place, now, moved):
    trainer = {"state": {"step": 9, "iteration": place[0], "batches_done": place[1]}, "task": {}}
    config_yaml = json.dumps({"epochs": former[0], "eval_interval": former[1]})
    saved = Checkpoint(Path("step_9"), {}, None, trainer, config_yaml)
    found = job(epochs=now[0], eval_interval=now[1]).moved_trainer(saved, mock.Mock(batches_of=lambda epoch: 3))
    assert (found and (found["state"]["iteration"], found["state"]["batches_done"])) == moved


def test_a_place_in_corpora_of_other_lengths_is_kept():
    trainer = {"state": {"step": 9, "iteration": 1, "batches_done": 9}, "task": {}}
    saved = Checkpoint(Path("step_9"), {}, None, trainer, json.dumps({"epochs": 3, "eval_interval": None}))
    found = job(epochs=3, eval_interval=1).moved_trainer(saved, mock.Mock(batches_of=[3, 5, 7].__getitem__))
    assert (found["state"]["iteration"], found["state"]["batches_done"]) == (3, 1)


def test_epochs_of_all_stages_are_added_up():
    assert epochs_of({"epochs": 2, "dataset": {"stages": [{"epochs": 3}, {"epochs": None}, {}]}}) == 7
    assert epochs_of({"epochs": 2, "dataset": {"stages": None}}) == epochs_of({"epochs": 2}) == 2
    assert epochs_of({}) is None
