"""The smoke script: it takes what is there, says what is not, and hands variables and overrides on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dataset.text.sample_corpus import make_sample_records
from tests.text_runs import write_corpus
from tests.tiny import ROOT

SCRIPT = ROOT / "scripts" / "pretrain_instruct_smoke.sh"
TINY = ["arch=trm_tiny", "arch.hidden_size=32", "arch.num_heads=2", "arch.L_layers=1", "arch.expansion=1", "device=cpu"]
VARIABLES = {"SUBSET_SIZE": 12, "SEQ_LEN": 72, "TEST_RATIO": 0.25, "GLOBAL_BATCH": 4, "EPOCHS": 1}


def smoke(tmp_path: Path, *words: str, **environment: str) -> tuple[dict, str, dict]:
    """Its result, what it told, and the config that it trained with."""
    variables = {f"SMOKE_{name}": str(value) for name, value in VARIABLES.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "LLAMA_"))}
    done = subprocess.run(
        [str(SCRIPT), *TINY, f"checkpoint_path={tmp_path / 'run'}", *words],
        cwd=tmp_path,
        env=inherited | {"PYTHON": sys.executable} | variables | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report, compared, reply = done.stdout.split("\n", 2)
    asked = [line for line in done.stderr.splitlines() if line.startswith("[smoke] ")][-1]
    assert re.search("What is 7 plus 8|Write c o r n backwards", asked) and reply.endswith("\n")
    accuracy = json.loads(report)["test"]["exact_accuracy"]
    assert re.search(rf"exact accuracy {accuracy:.3f} on \d+ questions .*: 0\.\d+\).*bigrams: \d", compared)
    return (
        json.loads(report),
        done.stderr,
        OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml")),
    )


def assert_obeyed(config: dict) -> None:
    found = [config["dataset"][name] for name in ("subset_size", "seq_len", "test_ratio")]
    assert [*found, config["global_batch_size"], config["epochs"]] == list(VARIABLES.values())


def test_without_corpus_and_tokenizer_it_takes_the_built_in_ones(tmp_path):
    report, told, config = smoke(
        tmp_path,
        *("lr=7e-4", "dataset.sample_size=200", "dataset.sample_tasks=[spelling,addition]"),
        SMOKE_DATA_DIR=str(tmp_path / "data"),
        LLAMA_TOKENIZER=str(tmp_path / "no.model"),
    )
    assert f"no tokenizer at {tmp_path / 'no.model'}" in told
    assert f"no SlimOrca.jsonl or SlimOrca.jsonl.zst in {tmp_path / 'data'}" in told
    assert "taking the built-in sample corpus" in told
    assert config["dataset"]["source"] == "sample" and config["lr"] == 7e-4
    assert config["dataset"]["sample_tasks"] == ["spelling", "addition"]
    assert_obeyed(config)
    assert report["test"]["count"] > 0 and report["test"]["token_loss"] < 20


def test_corpus_and_tokenizer_that_are_there_are_taken(tmp_path):
    data = write_corpus(tmp_path / "data")
    report, told, config = smoke(
        tmp_path, SMOKE_DATA_DIR=str(data), LLAMA_TOKENIZER=str(data / "tokenizer.model"), DISABLE_COMPILE="1"
    )
    assert f"corpus in {data}, tokenizer {data / 'tokenizer.model'}" in told and "sample corpus" not in told
    assert config["dataset"]["source"] == "local" and config["dataset"]["data_dir"] == str(data)
    assert_obeyed(config)
    assert report["test"]["count"] == 1, "18 are held out; a tenth of the 12 that are trained on is evaluated"


def test_the_question_is_in_no_training_record():
    """With the ratio of the recipe and every larger one: the share that its word falls into is smaller."""
    (question,) = re.findall(r'question="(Write .*\.)"', SCRIPT.read_text())
    records = make_sample_records(20_000, 0, 0.01, ["spelling"])
    word = question.removeprefix("Write ").removesuffix(" backwards.")
    texts = [record["conversations"][-2]["value"] for record in records["train"]]
    assert not any(f" {word}." in text or f" {word}?" in text or f" {word} " in text for text in texts)


@pytest.mark.slow
def test_its_model_has_learnt_to_answer_what_it_was_never_asked(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "LLAMA_"))}
    missing = {"SMOKE_DATA_DIR": str(tmp_path / "data"), "LLAMA_TOKENIZER": str(tmp_path / "none")}
    done = subprocess.run(
        [str(SCRIPT), f"checkpoint_path={tmp_path / 'run'}", "device=cpu"],
        cwd=tmp_path,
        env=environment | {"PYTHON": sys.executable} | missing,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report, _, reply = done.stdout.split("\n", 2)
    assert json.loads(report)["test"]["exact_accuracy"] >= 0.8
    assert reply == "n r o c\n"
