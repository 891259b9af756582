"""Bad input through the door: each fault ends in its own words and exit code 1, and nothing on disk is lost."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from engine.build.puzzles import check_batch_shares
from engine.checkpoints import save as checkpoint
from engine.config.check import check
from engine.config.schema import PretrainConfig
from engine.train.tracking.metrics_file import MetricsFile
from tests.tiny import ARCH, RUN, TRM, edit_json, flags, logged, pretrain, steps_on_disk, write_sudoku


def content(folder: Path) -> dict[str, str]:
    """Every file and link below a folder, to see that nothing changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def refused(command: list[str]) -> str:
    """The one message that a program leaves with."""
    ended = pretrain(command)
    assert ended.code == 1 and ended.out == "", ended
    assert "Traceback" not in ended.err
    return ended.err[ended.err.index("error: ") :]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, its data beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_sudoku(folder / "data")
    assert pretrain(flags(folder / "data", folder / "run", epochs=3)).code == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def change_array(file: Path, **at: int) -> None:
    array = np.load(file)
    array[at["row"], at["column"]] = at["value"]
    np.save(file, array)


def missing_folder(folder: Path) -> Path:
    return folder / "nowhere"


def file_instead(folder: Path) -> Path:
    return folder / "data" / "identifiers.json"


def other_length(folder: Path) -> Path:
    edit_json(folder / "data" / "train" / "dataset.json", seq_len=25)
    return folder / "data"


def other_groups(folder: Path) -> Path:
    edit_json(folder / "data" / "test" / "dataset.json", total_groups=11)
    return folder / "data"


def label_outside(folder: Path) -> Path:
    change_array(folder / "data" / "train" / "all__labels.npy", row=3, column=2, value=17)
    return folder / "data"


def array_cut(folder: Path) -> Path:
    file = folder / "data" / "train" / "all__inputs.npy"
    file.write_bytes(file.read_bytes()[:-20])
    return folder / "data"


def array_gone(folder: Path) -> Path:
    (folder / "data" / "test" / "all__inputs.npy").unlink()
    return folder / "data"


def no_json(folder: Path) -> Path:
    (folder / "data" / "train" / "dataset.json").write_text("{")
    return folder / "data"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (missing_folder, ("nowhere")),
        (file_instead, ("No data set at",)),
        (other_length, ("all__inputs.npy has rows of 16 tokens; expected seq_len=25",)),
        (other_groups, ("says total_groups=11", "hold 10 groups")),
        (label_outside, ("all__labels.npy has the value 17 in row 3; expected 0 to 5",)),
        (array_cut, ("all__inputs.npy", ".npy array")),
        (array_gone, ("all__inputs.npy does not exist",)),
        (no_json, ("Cannot use", "dataset.json")),
    ],
)
def test_data_that_cannot_be_used_is_refused(folder, spoil, told):
    data = spoil(folder)
    before = content(folder)
    message = refused(flags(data, folder / "new"))
    assert all(part in message for part in told), message
    assert {name: seen for name, seen in content(folder).items() if not name.startswith("new/")} == before


def test_without_a_test_split_training_goes_on_without_evaluation(folder):
    shutil.rmtree(folder / "data" / "test")
    ended = pretrain(flags(folder / "data", folder / "new", epochs=3))
    assert (ended.code, ended.out, steps_on_disk(folder / "new")) == (0, "", [9])
    assert "no held-out data: none of data_paths has a `test` split" in ended.err
    source = {"load_checkpoint": str(folder / "run"), "eval_only": True}
    assert "eval_only=true" in refused(flags(folder / "data", folder / "newer", **source))
    named = flags(folder / "data", folder / "newer", data_paths_test=[str(folder / "data")])
    assert "has no split 'test'" in refused(named), "held-out data that is asked for must be there"


def narrow(folder: Path) -> tuple[Path, dict]:
    return folder / "run", {"hidden_size": 16}


def cut_file(folder: Path) -> tuple[Path, dict]:
    file = folder / "start.pt"
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-300])
    return file, {}


def foreign_file(folder: Path) -> tuple[Path, dict]:
    (folder / "start.pt").write_text("these are no weights")
    return folder / "start.pt", {}


def cut_step(folder: Path) -> tuple[Path, dict]:
    file = folder / "run" / "step_9" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-300])
    return folder / "run" / "step_9", {}


def changed_step(folder: Path) -> tuple[Path, dict]:
    file = folder / "run" / "step_9" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    return folder / "run" / "step_9", {}


def no_checkpoint(folder: Path) -> tuple[Path, dict]:
    return folder / "data", {}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (narrow, ("do not fit this model", "(6, 32) there, (6, 16) here", "arch.hidden_size")),
        (cut_file, ("start.pt", "cannot be read", "Copy it again")),
        (foreign_file, ("start.pt", "cannot be read")),
        (cut_step, ("step_9 is not whole: model.safetensors has",)),
        (changed_step, ("is not what was saved: its sha256 differs",)),
        (no_checkpoint, ("/data", "step_<N>")),
    ],
)
@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_checkpoint_that_cannot_be_used_is_refused(folder, purpose, spoil, told):
    source, arch = spoil(folder)
    before = content(folder)
    words = flags(folder / "data", folder / "new", arch, load_checkpoint=str(source), eval_only=purpose == "evaluate")
    message = refused(words)
    assert all(part in message for part in told), message
    assert {name: seen for name, seen in content(folder).items() if not name.startswith("new/")} == before


def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(tmp_path):
    data, run_dir, whole = write_sudoku(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    command = flags(data, run_dir, checkpoint_interval=4, eval_interval=9)
    honest = checkpoint._write_folder

    def full_after_two(folder, snapshot):
        if snapshot.step == 12:
            (folder / "model.safetensors").write_bytes(b"half of")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(folder, snapshot)

    with mock.patch.object(checkpoint, "_write_folder", full_after_two):
        message = refused(command)
    assert "The checkpoint of step 12 could not be written" in message and "the disk is full" in message
    assert f"The last good checkpoint is {run_dir / 'step_8'}" in message and "resume=true" in message
    assert steps_on_disk(run_dir) == [4, 8] and not list(run_dir.glob(".*"))

    assert pretrain([*command, "resume=true"]).code == 0
    assert pretrain(flags(data, whole, checkpoint_interval=4, eval_interval=9)).code == 0
    assert logged(run_dir) == logged(whole)


def test_a_full_disk_under_the_metrics_ends_in_words_too(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    failure = OSError(errno.ENOSPC, "No space left on device; make room", str(run_dir / "metrics.jsonl"))
    with mock.patch.object(MetricsFile, "write", side_effect=failure):
        message = refused(flags(data, run_dir))
    assert "No space left on device; make room" in message and "metrics.jsonl" in message


@pytest.mark.parametrize(
    ("ranks", "parts", "told"),
    [(3, 1, "3 ranks x gradient_accumulation_steps=1. Take a multiple of 3"), (2, 8, "Take a multiple of 16")],
)
def test_a_batch_that_ranks_cannot_share_is_refused(ranks, parts, told):
    settings = RUN | {"arch": {"name": TRM} | ARCH, "data_paths": ["a"], "gradient_accumulation_steps": parts}
    config = check(PretrainConfig, settings)
    with pytest.raises(ValueError, match="global_batch_size=8") as refusal:
        check_batch_shares(config, mock.Mock(world_size=ranks))
    assert told in str(refusal.value)
    check_batch_shares(config, mock.Mock(world_size=1))


def test_a_run_folder_with_checkpoints_is_not_written_over(folder):
    before = content(folder)
    message = refused(flags(folder / "data", folder / "run"))
    assert str(folder / "run") in message and "resume=true" in message
    assert content(folder) == before


def test_a_resume_that_does_not_fit_loses_nothing(folder):
    before = content(folder / "run")
    for changes in ({"arch": {"hidden_size": 16}}, {"ema": True}, {"arch": {"puzzle_emb_ndim": 32}}):
        message = refused(flags(folder / "data", folder / "run", resume=True, epochs=6, **changes))
        assert "fit this model" in message or "holds no averaged weights" in message
        assert content(folder / "run") == before
    assert pretrain(flags(folder / "data", folder / "run", resume=True, epochs=6)).code == 0
    assert "epochs: 6" in (folder / "run" / "config.yaml").read_text()


def test_evaluating_needs_a_checkpoint_and_leaves_no_run_folder(folder):
    assert "eval_only=true needs load_checkpoint" in refused(flags(folder / "data", folder / "new", eval_only=True))
    assert not (folder / "new").exists()


def test_options_of_evaluators_and_outputs_are_checked_before_any_training(folder):
    words = flags(folder / "data", folder / "new", eval_save_outputs=["prds"])
    message = refused([*words, "evaluators=[{name:arc@ARC,pass_k:[1]}]"])
    assert "eval_save_outputs: no model returns prds. Choose from inputs, labels" in message
    assert "evaluators.pass_k: unknown key of arc@ARC, did you mean pass_Ks?" in message
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"best_metric": "nope"}, "best_metric=nope.*exact_accuracy"),
        ({"best_metric": "exact_acuracy"}, "did you mean exact_accuracy"),
        ({"global_batch_size": 4096}, "global_batch_size=4096"),
        ({"freeze_weights": True}, "freeze_weights"),
        ({"load_checkpoint": "nowhere"}, "nowhere"),
        ({"optimizer": "adam_atan2_cuda"}, "adam"),
    ],
)
def test_a_refused_start_leaves_nothing(folder, changes, told):
    ended = pretrain(flags(folder / "data", folder / "deep" / "new", **changes))
    assert ended.code == 1 and re.search(told, ended.err, re.DOTALL), ended.err
    assert not (folder / "deep").exists()


def test_an_evaluation_needs_no_training_batch(folder):
    options = {"load_checkpoint": str(folder / "run"), "eval_only": True, "global_batch_size": 512, "eval_interval": 1}
    ended = pretrain(flags(folder / "data", folder / "new", **options))
    assert ended.code == 0 and ended.report["all"]["exact_accuracy"] >= 0


def test_the_config_on_disk_says_all_that_was_decided(folder):
    written = (folder / "run" / "config.yaml").read_text()
    assert (folder / "run" / "step_9" / "config.yaml").read_text() == written
    meta = json.loads((folder / "run" / "step_9" / "meta.json").read_text())
    assert meta["parameters_trunk"] == 28672 and meta["best_metric"] == "lm_loss"
    for line in ("run_name: run", "project_name: Data-ACT-torch", "max_bad_steps: 10", "hidden_size: 32"):
        assert line in written


@pytest.mark.parametrize(("rate", "told"), [(0.999, ("99%", "ema_rate=0.999", "0.774")), (0.7, ())])
def test_a_run_says_that_its_average_is_still_its_start(tmp_path, rate, told):
    data = write_sudoku(tmp_path / "data")
    ended = pretrain(flags(data, tmp_path / "run", epochs=3, ema=True, ema_rate=rate))
    assert ended.code == 0, ended.err
    assert all(word in ended.err for word in told) and ("ema_rate" in ended.err) == bool(told)


def test_epochs_that_a_finished_run_is_resumed_for_follow_those_it_had(tmp_path):
    """Its last iteration was shorter than the others, and what fills no batch at the end of one is left out."""
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    assert pretrain(flags(data, run_dir, global_batch_size=7, epochs=5, eval_interval=3)).code == 0
    assert logged(run_dir)[-1]["step"] == 72 // 7 + 48 // 7
    assert pretrain(flags(data, run_dir, global_batch_size=7, epochs=9, eval_interval=3, resume=True)).code == 0
    assert logged(run_dir)[-1]["step"] == 3 * (72 // 7)


@pytest.mark.parametrize(("chosen", "told"), [("ema: false", "note: "), ("lr_warmup_steps: 50", "warning: ")])
def test_what_a_config_of_ones_own_chooses_is_not_taken_for_a_default(tmp_path, chosen, told):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    (tmp_path / "own.yaml").write_text(f"defaults: [cfg_pretrain, _self_]\n{chosen}\n")
    words = [word for word in flags(data, run_dir, epochs=1) if not word.startswith("lr_warmup_steps")]
    ended = pretrain(["--config-dir", str(tmp_path), "--config-name", "own", *words])
    assert ended.code == 0 and re.search(f"{told}.*lr_warmup_steps", ended.err)
