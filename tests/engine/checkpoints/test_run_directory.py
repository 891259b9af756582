"""Where a run lives: its name, its config on disk, and the checkpoint that it goes on from."""

import os
import re
from pathlib import Path
from unittest import mock

import pytest
from omegaconf import OmegaConf

from engine.checkpoints import run_directory as run_directory_module
from engine.config.check import check
from engine.checkpoints.run_directory import checkpoint_to_resume
from engine.checkpoints.run_directory import RunDirectory, named_directory, newest_run, start_directory
from engine.config.schema import PretrainConfig
from tests.tiny import ARCH, CPU, RUN, TRM, flags, logged, pretrain, write_sudoku


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(runtime=CPU, **changes) -> RunDirectory:
    data = {**RUN, "arch": {"name": TRM, **ARCH}, "data_paths": ["data/maze"]} | changes
    config = check(PretrainConfig, data)
    directory = named_directory(config, "trm", runtime, print)
    if runtime.is_main:
        start_directory(directory, config.resume)
    return directory


def test_the_config_is_on_disk_before_anything_heavy_and_complete():
    folder = opened(run_name="first", lr=0.5)
    assert folder.path == Path("checkpoints/Maze-ACT-torch/first")
    written = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    assert written["lr"] == 0.5 and written["arch"]["hidden_size"] == 32 and written["run_name"] == "first"
    again = check(PretrainConfig, written)
    assert again.checkpoint_path == str(folder.path) and again.lr == 0.5, "it can be read back as a config"


def test_a_run_without_a_name_gets_one_of_its_own():
    names = {opened().name for _ in range(3)}
    assert len(names) == 3 and all(re.fullmatch(r"trm-[a-z]+-[a-z]+", name) for name in names)


def test_all_ranks_share_the_name_that_the_first_one_chose():
    class Second(type(CPU)):
        def broadcast_(self, tensors):
            (letters,) = tensors
            letters[:7] = letters.new_tensor(list(b"trm-two"))

    folder = opened(Second(device=CPU.device, rank=1, world_size=2, use_compile=False))
    assert folder.name == "trm-two" and not folder.path.exists(), "only the main rank writes"


def test_names_and_paths_that_were_given_are_taken():
    assert opened(project_name="p", run_name="r").path == Path("checkpoints/p/r")
    given = opened(checkpoint_path="elsewhere/q", run_name="ignored-by-the-path")
    assert (given.path, given.name) == (Path("elsewhere/q"), "q")


def test_a_folder_with_checkpoints_asks_for_resume():
    path = opened(run_name="r").path
    opened(run_name="r", lr=0.25)
    assert "lr: 0.25" in (path / "config.yaml").read_text(), "without checkpoints there is nothing to lose"
    (path / "step_3").mkdir()
    with pytest.raises(ValueError, match="resume=true"):
        opened(run_name="r", lr=0.75)
    opened(run_name="r", lr=0.75, resume=True)
    assert "lr: 0.25" in (path / "config.yaml").read_text(), "until the checkpoint has been seen to fit"


def test_resume_without_a_name_takes_the_newest_run_that_has_a_checkpoint(capsys):
    for age, name in enumerate(("newest", "older", "oldest"), start=1):
        path = opened(run_name=name).path
        (path / "step_1").mkdir()
        os.utime(path, (1e9 - age, 1e9 - age))
    os.utime(opened(run_name="empty").path, (2e9, 2e9))
    assert opened(resume=True).name == "newest"
    assert "taking the newest run, checkpoints/Maze-ACT-torch/newest" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nowhere"):
        newest_run(Path("nowhere"))


def test_resume_auto_takes_the_run_of_its_name_and_no_other():
    (opened(run_name="other").path / "step_1").mkdir()
    assert opened(run_name="own", resume="auto").name == "own"
    (Path("checkpoints/Maze-ACT-torch/own") / "step_1").mkdir()
    assert opened(run_name="own", resume="auto").name == "own"
    with pytest.raises(ValueError, match="resume=auto.*run_name"):
        opened(resume="auto")


def test_a_resume_before_the_first_checkpoint_starts_anew_with_a_notice():
    data, run_dir = write_sudoku(Path("data").resolve()), Path("run").resolve()
    ended = pretrain(flags(data, run_dir, epochs=3, resume=True))
    assert ended.code == 0 and logged(run_dir)[0]["step"] == 1
    assert f"resume: no checkpoint in {run_dir} yet, starting from the beginning" in ended.err


def test_all_ranks_resume_from_the_checkpoint_that_the_first_one_found(tmp_path):
    class Second(type(CPU)):
        def broadcast_(self, tensors):
            (letters,) = tensors
            letters[:6] = letters.new_tensor(list(b"step_4"))

    second = Second(device=CPU.device, rank=1, world_size=2, use_compile=False)
    with mock.patch.object(run_directory_module, "load_checkpoint") as load:
        checkpoint_to_resume("latest", tmp_path, second)
    load.assert_called_once_with(tmp_path / "step_4", with_trainer=True)


def test_all_ranks_are_told_that_the_first_one_found_none_that_is_whole(tmp_path):
    shared = []

    class First(type(CPU)):
        def broadcast_(self, tensors):
            shared.extend(tensors)

    class Second(type(CPU)):
        def broadcast_(self, tensors):
            tensors[0].copy_(shared[0])

    (tmp_path / "step_4").mkdir()
    for rank, runtime_class in enumerate((First, Second)):
        runtime = runtime_class(device=CPU.device, rank=rank, world_size=2, use_compile=False)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            checkpoint_to_resume("latest", tmp_path, runtime)
