"""A dry run says what the run will do, and writes nothing."""

import json
from pathlib import Path

import pytest

from tests.chat_runs import chat_flags, write_chat_data
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import flags, logged, pretrain, steps_on_disk, write_sudoku

START = {
    "puzzles": (write_sudoku, flags, pretrain),
    "chat": (write_chat_data, chat_flags, pretrain),
    "text": (write_corpus, text_flags, train_text),
}


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(
    ("kind", "arch", "changes"),
    [
        ("puzzles", {}, {"epochs": 7, "eval_interval": 2}),
        ("puzzles", {}, {"epochs": 9, "eval_interval": 3, "max_steps": 10, "checkpoint_interval": 4}),
        ("puzzles", {}, {"epochs": 6, "eval_interval": 1, "min_eval_interval": 4, "checkpoint_every_eval": False}),
        ("chat", {}, {"epochs": 4, "eval_interval": 3, "ema": True}),
        ("text", {"recursion": "carry", "halt_policy": "fixed"}, {"epochs": 2, "eval_interval": 1}),
        ("text", {"detach_between_steps": False}, {"epochs": 2, "max_steps": 5, "gradient_accumulation_steps": 2}),
    ],
)
def test_a_dry_run_says_what_the_run_then_does(kind, arch, changes, tmp_path, monkeypatch):
    write, words, start = START[kind]
    data, run_dir = write(tmp_path / "data"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    before, command = files(tmp_path), words(data, run_dir, arch, **changes)
    dry = start([*command, "--dry-run"])
    assert dry.code == 0 and files(tmp_path) == before, dry.err
    said = json.loads(dry.out)
    assert start(command).code == 0
    lines = logged(run_dir)
    num_evaluations = sum(any(key.endswith("/exact_accuracy") and "train" not in key for key in line) for line in lines)
    is_estimate = arch.get("recursion") == "carry"  # how early rows are retired is not known ahead
    assert said["steps"] == pytest.approx(lines[-1]["step"], rel=0.2 if is_estimate else 0)
    assert said["evaluations"] == num_evaluations
    best = (run_dir / "best").resolve().name  # saved in any case
    assert len(steps_on_disk(run_dir)) - said["saves"] in (0, 1 if best else 0)
    meta = json.loads((run_dir / "latest" / "meta.json").read_text())
    assert {key: said[key] for key in said if key.startswith("parameters")} == {
        key: meta[key] for key in meta if key.startswith("parameters_")
    }
    sizes = said["memory_bytes"]
    assert sizes["all"] == sum(sizes.values()) - sizes["all"] and (sizes["averaged_weights"] > 0) == ("ema" in changes)


def test_the_tokenizer_of_the_built_in_conversations_is_not_kept(tmp_path):
    data = {"dataset.source": "sample", "dataset.tokenizer_path": None, "dataset.subset_size": 20}
    ended = train_text([*text_flags(tmp_path / "data", tmp_path / "run", **data), "--dry-run"])
    assert ended.code == 0 and json.loads(ended.out)["train_rows"] > 0, ended.err
    assert files(tmp_path) == []


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "SlimOrca.jsonl").unlink()
    before, words = files(tmp_path), text_flags(corpus, tmp_path / "run", dataset__source="auto")
    ended = train_text([*words, "--dry-run"])
    assert ended.code == 1 and "--dry-run" in ended.err and "--dry-run" not in train_text(words).err
    assert [path for path in files(tmp_path) if path.suffix != ".lock"] == before


def test_activations_grow_with_the_rows_of_a_pass(tmp_path):
    data = write_sudoku(tmp_path / "data")
    sizes = [
        json.loads(pretrain([*flags(data, tmp_path / "run", **changes), "--dry-run"]).out)["memory_bytes"][
            "activations"
        ]
        for changes in ({"global_batch_size": 8}, {"global_batch_size": 16}, {"gradient_accumulation_steps": 2})
    ]
    assert sizes[1] == 2 * sizes[0] == 4 * sizes[2] > 0


def test_what_a_run_would_refuse_a_dry_run_refuses_too(tmp_path):
    data = write_sudoku(tmp_path / "data")
    assert pretrain(flags(data, tmp_path / "run", max_steps=1)).code == 0
    for changes, told in (({}, "resume=true"), ({"checkpoint_path": "x", "best_metric": "nope"}, "best_metric=nope")):
        ended = pretrain([*flags(data, tmp_path / "run", **changes), "--dry-run"])
        assert ended.code == 1 and told in ended.err
