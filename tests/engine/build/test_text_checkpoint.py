"""Checkpoints are opened with their own config and tokenizer, and those that cannot answer say why."""

import shutil

import pytest
import yaml

from engine.build.text_checkpoint import load_model
from engine.generate.options import OpenOptions
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import flags, pretrain, write_sudoku


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaded")
    ended = train_text(text_flags(write_corpus(folder / "data"), folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return folder


def test_a_checkpoint_carries_what_it_needs(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "elsewhere", symlinks=True)
    loaded = load_model(OpenOptions(str(tmp_path / "elsewhere"), device="cpu"))
    assert loaded.path.parent == tmp_path / "elsewhere" and loaded.window == 72
    (tokenizer,) = loaded.tokenizer.files()
    assert tokenizer.parent == loaded.path and loaded.config.dataset.tokenizer_path == str(tokenizer)
    assert loaded.stop_ids == {loaded.tokenizer.eos_id} and loaded.special_id("</s>") == loaded.tokenizer.eos_id
    assert loaded.special_id("</p>") is None and not loaded.model.training


def test_flags_and_overrides_win_over_the_checkpoint(folder):
    other = folder / "data" / "tokenizer.model"
    options = OpenOptions(str(folder / "run"), tokenizer_path=str(other), overrides=["dataset.seq_len=90"])
    loaded = load_model(options)
    assert loaded.tokenizer.files() == [other] and loaded.window == 90
    loaded = load_model(OpenOptions(str(folder / "run"), overrides=[f"dataset.tokenizer_path={other}"]))
    assert loaded.tokenizer.files() == [other] and loaded.window == 72


def test_checkpoints_that_cannot_answer_say_why(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_model(OpenOptions(str(tmp_path / "nowhere")))
    shutil.copytree(folder / "run", tmp_path / "old", symlinks=True)
    for file in tmp_path.glob("old/step_*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        del config["arch"]["causal"]
        file.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="arch.causal"):
        load_model(OpenOptions(str(tmp_path / "old")))
    ended = pretrain(
        flags(write_sudoku(tmp_path / "sudoku"), tmp_path / "puzzle", max_steps=1, epochs=1, eval_interval=1)
    )
    assert ended.code == 0, ended.err
    with pytest.raises(ValueError, match="sudoku"):
        load_model(OpenOptions(str(tmp_path / "puzzle")))


def damaged_copy(folder, tmp_path, content):
    """The run with this content in place of every config of its checkpoints."""
    shutil.copytree(folder / "run", tmp_path / "copy", symlinks=True)
    for file in tmp_path.glob("copy/step_*/config.yaml"):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return OpenOptions(str(tmp_path / "copy"), device="cpu")


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else '0')}]\n" for n in range(12))


DAMAGED = ["arch: [", "a: b: c", "- 1", "", "3", "arch: 3", "arch: {name: [3]}", b"\xff\xfe\x00", BOMB, "a: &a [*a]"]
DAMAGED += [
    "[" * 90_000,
    "x: 1\n" * 30_000,
    "dataset: 3",
    "dataset: {tokenizer_path: {a: b}}",
    "!!python/object:os.system [x]",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_config_is_one_message(folder, tmp_path, content):
    with pytest.raises(ValueError, match=r"config") as refused:
        load_model(damaged_copy(folder, tmp_path, content))
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "x${oc.env:SECRET}", "${oc.env:${oc.env:NAME}}", "${.b}"])
def test_a_config_that_refers_to_the_environment_is_refused_without_looking_there(
    folder, tmp_path, value, monkeypatch, capsys
):
    monkeypatch.setenv("SECRET", "swordfish")
    monkeypatch.setenv("NAME", "SECRET")
    (config,) = {file.read_text() for file in (folder / "run").glob("step_*/config.yaml")}
    data = yaml.safe_load(config)
    data["project_name"] = value
    with pytest.raises(ValueError, match="project_name") as refused:
        load_model(damaged_copy(folder, tmp_path, yaml.safe_dump(data)))
    assert "swordfish" not in str(refused.value) + "".join(capsys.readouterr())


def test_a_damaged_best_checkpoint_gives_way_and_is_said(folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    (step,) = tmp_path.glob("run/step_*")
    shutil.copytree(step, tmp_path / "run" / "step_1")
    (step / "ema.safetensors" if (step / "ema.safetensors").exists() else step / "model.safetensors").write_bytes(b"")
    assert load_model(OpenOptions(str(tmp_path / "run"), device="cpu")).path == tmp_path / "run" / "step_1"
    assert step.name in capsys.readouterr().err
