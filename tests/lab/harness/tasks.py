"""Tasks of lm-eval in a directory: two choices, a text that goes on, and a text as a whole."""

import json
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = [
    {"question": f"What is {a} plus {b}?", "choices": [str(a + b), f"{a} and {b} cats", "I do not know."], "right": 0}
    for a in (2, 3, 4)
    for b in (5, 6)
]
TEXTS = ["A short text.", "A text that is longer than the window of the model. " * 8, ""]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{right}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}


def write_task(folder: Path, name: str, task: dict[str, Any], lines: list[dict[str, Any]] | None = None) -> str:
    """A task over its own JSON lines, by whose name it is found; JSON is YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines or QUESTIONS))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))
    return name


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """A directory for tasks, while data sets and their caches stay in tmp_path."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "tasks"
