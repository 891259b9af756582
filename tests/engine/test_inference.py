"""Evaluating an instruction checkpoint: the same numbers as in training, every flag, and bad input in words."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dataset.common import IGNORE_LABEL_ID
from engine.inference import nested, output_folder
from tests.text_runs import infer_text, text_flags, train_text, write_corpus
from tests.tiny import ROOT, Ended, flags, pretrain, write_sudoku

HELD_OUT = 18  # of 60 records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs, one with averaged weights, beside their corpus."""
    folder = tmp_path_factory.mktemp("text")
    data = write_corpus(folder / "data")
    ended = train_text(text_flags(data, folder / "run", ema=True, ema_rate=0.8, gradient_accumulation_steps=2))
    assert ended.code == 0, ended.err
    (folder / "report.json").write_text(ended.out)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def step_of(folder: Path) -> Path:
    (step,) = (folder / "run").glob("step_*")
    return step


def metrics(ended: Ended, output_dir: Path) -> dict:
    """What was written, after a look that it is what was shown."""
    assert ended.code == 0, ended.err
    (file,) = output_dir.glob("metrics_*.json")
    written = json.loads(file.read_text())
    lines = ended.out.splitlines()
    assert lines[0] == "=== Inference Metrics ==="
    ((split, found),) = written.items()
    assert lines[1] == f"{split}:"
    shown = dict(line.strip().split(": ", 1) for line in lines[2:] if re.match(r"  \w+: ", line))
    assert {name: float(value) for name, value in shown.items()} == {k: v for k, v in found.items() if k != "by_depth"}
    depths = [int(line.split(":")[0]) for line in lines if re.match(r"    \d+: ", line)]
    assert depths == [int(depth) for depth in found["by_depth"]] == [1, 2]
    return found


def refused(*arguments) -> str:
    ended = infer_text(*arguments)
    assert ended.code == 1 and ended.out == "" and "Traceback" not in ended.err, ended
    return ended.err[ended.err.index("error: ") :]


@pytest.mark.parametrize("place", ["run", "step"])
def test_it_says_what_training_said_last(folder, place):
    path = folder / "run" if place == "run" else step_of(folder)
    found = metrics(infer_text("--checkpoint", path), folder / "run" / "inference_test")
    trained = nested(json.loads((folder / "report.json").read_text())["test"])
    assert found | {"by_depth": {int(depth): v for depth, v in found["by_depth"].items()}} == trained
    assert found["count"] == HELD_OUT and found["steps"] == 2
    assert found.keys() >= {"accuracy", "exact_accuracy", "lm_loss", "token_loss", "perplexity", "bits_per_byte"}
    assert found.keys() >= {"q_halt_accuracy", "q_halt_loss", "q_halt_auc"}
    assert found["by_depth"]["2"]["lm_loss"] == found["lm_loss"] != found["by_depth"]["1"]["lm_loss"]


def test_a_full_disk_is_told_with_the_file_and_leaves_none(folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = refused("--checkpoint", folder / "run", "--output-dir", folder / "out")
    assert str(folder / "out" / "metrics_") in told and "The disk is full" in told
    assert list((folder / "out").iterdir()) == []


def test_it_is_the_averaged_weights_that_are_evaluated(folder):
    from safetensors.torch import load_file

    step = step_of(folder)
    averaged, plain = load_file(step / "ema.safetensors"), load_file(step / "model.safetensors")
    assert averaged.keys() <= plain.keys() and any(not torch.equal(averaged[name], plain[name]) for name in averaged)
    torch.save(plain, folder / "plain.pt")
    config = ["--data-dir", folder / "data", "--tokenizer-path", folder / "data" / "tokenizer.model", "--seq-len", 72]
    words = [word for word in text_flags(folder / "data", folder) if word.startswith(("arch.", "dataset.test"))]
    ended = infer_text("--checkpoint", folder / "plain.pt", *config, "--overrides", *words, "dataset.source=local")
    assert "cfg_pretrain_instruct" in ended.err
    found = metrics(ended, folder / "inference_test")
    assert found["count"] == HELD_OUT
    assert found["token_loss"] != json.loads((folder / "report.json").read_text())["test"]["token_loss"]


def test_every_flag_of_the_documents_does_what_it_says(folder):
    out = folder / "elsewhere"
    ended = infer_text(
        *("--checkpoint", step_of(folder), "--split", "train", "--save-outputs", "preds", "labels", "inputs"),
        *("--output-dir", out, "--tokenizer-path", folder / "data" / "tokenizer.model"),
        *("--data-dir", folder / "data", "--subset-size", 10, "--seq-len", 80, "--batch-size", 3),
        *("--max-batches", 1, "--config-name", "cfg_pretrain_instruct", "--overrides", "dataset.packing=false"),
        *("--project-name", "x", "--run-name", "y"),
    )
    found = metrics(ended, out)
    assert json.loads(next(out.glob("*.json")).read_text()).keys() == {"train"}
    assert found["count"] == 3 and "10 train, 10 test" in ended.err
    (file,) = out.glob("*_all_preds.0.safetensors")
    saved = load_file(file)
    assert saved.keys() == {"preds", "labels", "inputs"} and saved["preds"].shape == (3, 80)
    is_answer = saved["labels"] != IGNORE_LABEL_ID
    assert torch.equal(saved["preds"] != IGNORE_LABEL_ID, is_answer)
    right = ((saved["preds"] == saved["labels"]) & is_answer).sum()
    assert found["token_accuracy"] == pytest.approx(right.item() / is_answer.sum().item())
    assert not (folder / "run" / "inference_train").exists()


def test_the_numbers_do_not_depend_on_batches_or_packing(folder):
    found = []
    for words in (("--batch-size", 7), ("--batch-size", 1, "--overrides", "dataset.packing=false")):
        found.append(metrics(infer_text("--checkpoint", folder / "run", *words), folder / "run" / "inference_test"))
        assert found[-1].pop("by_depth").keys() == {"1", "2"}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_run_may_be_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "checkpoints" / "SlimOrca-ACT").mkdir(parents=True)
    shutil.copytree(folder / "run", folder / "checkpoints" / "SlimOrca-ACT" / "mine", symlinks=True)
    ended = infer_text("--run-name", "mine")
    metrics(ended, folder / "checkpoints" / "SlimOrca-ACT" / "mine" / "inference_test")
    assert "checkpoints/other/mine" in refused("--run-name", "mine", "--project-name", "other")
    assert "--run-name" in refused()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--overrides", "dataset.test_ratio=0"), "dataset.test_ratio=0.0 instead of 0.25.*--allow-other-split"),
        (("--allow-other-split", "--overrides", "dataset.test_ratio=0"), "empty.*dataset.test_ratio=0.0"),
        (("--max-batches", 0), "max_batches=0"),
        (("--save-outputs", "prds"), "eval_save_outputs.*prds.*preds"),
        (("--overrides", "arch.hiden_size=3"), "arch.hiden_size.*hidden_size"),
        (("--overrides", "packing"), "'packing'"),
        (("--overrides", "arch.causal=false"), "arch.causal=false"),
        (("--overrides", "arch.hidden_size=64"), "arch.hidden_size"),
        (("--data-dir", "nowhere"), "nowhere.*SlimOrca.jsonl"),
        (("--tokenizer-path", "nowhere.model"), "nowhere.model"),
        (("--subset-size", 0), "subset_size.*0"),
    ],
)
def test_what_cannot_be_done_is_told(folder, words, told):
    message = refused("--checkpoint", folder / "run", *words)
    assert re.search(told, message, flags=re.DOTALL), message
    assert not (folder / "run" / "inference_test").exists()


def test_a_vocabulary_that_does_not_fit_the_checkpoint_is_told(folder):
    other = write_corpus(folder / "other", vocab_size=380)
    message = refused("--checkpoint", folder / "run", "--tokenizer-path", other / "tokenizer.model")
    assert "(400, 32) there, (380, 32) here" in message and "vocabulary" in message


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_corrupt_tokenizer_is_told(folder, content):
    (step_of(folder) / "tokenizer.model").write_bytes(content)
    message = refused("--checkpoint", step_of(folder))
    assert "tokenizer.model" in message


def test_a_checkpoint_without_its_tokenizer_is_not_whole(folder):
    (step_of(folder) / "tokenizer.model").unlink()
    assert "tokenizer.model" in refused("--checkpoint", step_of(folder))


def test_a_puzzle_checkpoint_is_refused(tmp_path):
    data = write_sudoku(tmp_path / "data")
    assert pretrain(flags(data, tmp_path / "puzzles", epochs=3)).code == 0
    message = refused("--checkpoint", tmp_path / "puzzles")
    assert "pretrain.py eval_only=true" in message


def test_an_unknown_config_is_told(folder):
    torch.save({"a": torch.zeros(1)}, folder / "plain.pt")
    message = refused("--checkpoint", folder / "plain.pt", "--config-name", "cfg_chatt")
    assert "cfg_chatt" in message and "cfg_pretrain_instruct" in message


def test_help_names_every_flag_of_the_documents():
    ended = infer_text("--help")
    assert ended.code == 0
    for flag in (
        *("checkpoint", "split", "save-outputs", "tokenizer-path", "subset-size", "batch-size", "output-dir"),
        *("max-batches", "data-dir", "seq-len", "config-name", "overrides", "project-name", "run-name"),
    ):
        assert f"--{flag}" in ended.out
    assert (ROOT / "inference_instruct.py").exists()


def test_results_of_a_checkpoint_of_the_hub_go_where_runs_are(tmp_path):
    assert output_folder("ann/small", tmp_path / "snapshots/5f", "test") == Path("checkpoints/ann/small/inference_test")
    assert output_folder(str(tmp_path), tmp_path / "step_3", "test") == tmp_path / "inference_test"
