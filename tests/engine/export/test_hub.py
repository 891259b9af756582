"""Models go to the Hub and come back by name; published checkpoints of the reference load by theirs."""

import io

import pytest
import torch

from dataset.text.conversation import Turn
from engine.build.export import export
from engine.build.text_checkpoint import load_model
from engine.checkpoints.load import load_checkpoint
from engine.export.hub import RecursiveModel
from engine.export.options import ExportOptions
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import ARCH, TRM, flags, pretrain, write_sudoku


def saved(weights):
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    short = {"epochs": 1, "eval_interval": 1, "max_steps": 1}
    ended = pretrain(flags(write_sudoku(root / "data"), root / "run", **short))
    assert ended.code == 0, ended.err
    return root / "run"


def test_an_export_is_pushed_and_loads_by_name(run, fake_hub, tmp_path):
    found = export(ExportOptions(OpenOptions(str(run)), output=str(tmp_path / "out"), push="ann/sudoku"))
    assert found["pushed"].endswith("/ann/sudoku")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert fake_hub.repos["ann/sudoku"].keys() == names
    weights, expected = load_checkpoint("ann/sudoku").weights, load_checkpoint(run).weights
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    model = RecursiveModel.from_pretrained("ann/sudoku")
    assert model(torch.zeros(1, 16, dtype=torch.int32)).shape[:2] == (1, 16)
    data = run.parent / "data"
    again = flags(data, tmp_path / "again", epochs=1, eval_interval=1, max_steps=1, load_checkpoint="ann/sudoku")
    assert "weights from" in pretrain(again).err


def test_what_was_fetched_loads_without_a_network(run, fake_hub, tmp_path, monkeypatch):
    export(ExportOptions(OpenOptions(str(run)), output=str(tmp_path / "out"), push="ann/sudoku"))
    load_checkpoint("ann/sudoku")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_checkpoint("ann/sudoku").weights
    with pytest.raises(ValueError, match="hf download ann/other"):
        load_checkpoint("ann/other")


def test_models_push_themselves(fake_hub, tmp_path):
    arch = ARCH | {"seq_len": 16, "vocab_size": 9, "tie_embeddings": True}
    model = RecursiveModel(TRM, arch)
    model.push_to_hub("ann/tied")
    assert {"README.md", "config.json", "model.safetensors"} <= fake_hub.repos["ann/tied"].keys()
    again = RecursiveModel.from_pretrained("ann/tied")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    model.save_pretrained(tmp_path / "saved")
    assert RecursiveModel.from_pretrained(tmp_path / "saved").name == TRM


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_published_checkpoints_of_the_reference_load_by_name(prefix, fake_hub):
    weights = {f"{prefix}model.inner.H_init": torch.ones(3)}
    fake_hub.repos["ann/one"] = {"README.md": b"", "step_21700": saved(weights), "all_config.yaml": b"seed: 7\n"}
    found = load_checkpoint("ann/one")
    assert found.path.name == "step_21700" and found.config() == {"seed": 7}
    assert list(found.weights) == ["model.inner.H_init"]
    two = {
        "v1/step_5": saved(weights),
        "v1/all_config.yaml": b"seed: 1\n",
        "v2/step_6": saved(weights),
        "v2/trm.py": b"",
    }
    fake_hub.repos["ann/two"] = two
    with pytest.raises(ValueError, match="ann/two/v1/step_5, ann/two/v2/step_6"):
        load_checkpoint("ann/two")
    assert load_checkpoint("ann/two/v1").config() == {"seed": 1}
    assert load_checkpoint("ann/two/v2/step_6").config() is None
    assert not any("trm.py" in request for request in fake_hub.requests)


def test_names_that_lead_nowhere_say_so(fake_hub, tmp_path, monkeypatch):
    fake_hub.repos["ann/empty"] = {"README.md": b""}
    with pytest.raises(ValueError, match="README.md"):
        load_checkpoint("ann/empty")
    with pytest.raises(ValueError, match="ann/none"):
        load_checkpoint("ann/none")
    fake_hub.requests.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/none", "checkpoints/none", "./ann/none", "ann"):
        with pytest.raises(ValueError, match="There is no checkpoint"):
            load_checkpoint(name)
    assert not fake_hub.requests


def test_a_hub_that_refuses_leaves_the_folder(run, fake_hub, tmp_path):
    fake_hub.token = "good"
    options = ExportOptions(OpenOptions(str(run)), output=str(tmp_path / "out"), push="ann/sudoku")
    with pytest.raises(ValueError, match="HF_TOKEN"):
        export(options)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_name_without_an_owner_is_refused():
    with pytest.raises(ValueError, match="owner/name"):
        ExportOptions(output="x", push="sudoku")


def test_a_text_model_answers_by_its_name(fake_hub, tmp_path):
    ended = train_text(text_flags(write_corpus(tmp_path / "data"), tmp_path / "run", epochs=1))
    assert ended.code == 0, ended.err
    export(ExportOptions(OpenOptions(str(tmp_path / "run")), output=str(tmp_path / "out"), push="ann/text"))
    said = []
    for name in (str(tmp_path / "run"), "ann/text"):
        loaded = load_model(OpenOptions(name, device="cpu"))
        said.append(reply(loaded, [[Turn("user", "What is it?")]], ReplyOptions(max_tokens=8))[0].text)
    assert said[0] == said[1]
