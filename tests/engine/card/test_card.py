"""README.md of a run: numbers beside what a guess would score, commands that work, and nobody's text overwritten."""

import shlex

import numpy as np
import pytest
import torch

from engine.card.about import commands, data_of, kind_of
from engine.card.baselines import COMMONEST, COPIED, FREQUENCIES, baselines
from engine.card.card import CARD_FILE, COMMANDS, MARK
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import flags, pretrain, write_sudoku


def rows_of(card):
    """The cells of the table, by metric."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {line[1]: line for line in lines[2:]}


@pytest.fixture(scope="module")
def puzzle_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("card")
    words = flags(write_sudoku(root / "data"), root / "run")
    ended = pretrain(words)
    assert ended.code == 0, ended.err
    return root / "run", ended, words


def test_puzzles_have_their_numbers_beside_what_copying_scores(puzzle_run):
    run, ended, _ = puzzle_run
    card = (run / CARD_FILE).read_text()
    rows = rows_of(card)
    for metric in ("lm_loss", "accuracy", "exact_accuracy"):
        assert f"{ended.report['all'][metric]:.4g}" in rows[metric]
    inputs = np.load(run.parent / "data/test/all__inputs.npy")
    labels = np.load(run.parent / "data/test/all__labels.npy")
    assert rows["accuracy"][-1] == f"{(inputs == labels).mean():.4g} ({COPIED})"
    shares = np.unique(labels, return_counts=True)[1] / labels.size
    assert rows["lm_loss"][-1] == f"{-(shares * np.log(shares)).sum():.4g} ({FREQUENCIES})"
    assert "`trm`" in card and str(run.parent / "data") in card and "27 steps" in card


def test_its_commands_work(puzzle_run):
    run, _, _ = puzzle_run
    card = (run / CARD_FILE).read_text()
    lines = card.partition(COMMANDS)[2].partition("```bash\n")[2].partition("\n```")[0].splitlines()
    by_name = {line.rpartition("# ")[2]: shlex.split(line, comments=True) for line in lines}
    assert pretrain(by_name["evaluate"][2:]).code == 0
    ended = pretrain(by_name["resume, to train on"][2:])
    assert ended.code == 0 and "finished before" in ended.err
    assert by_name["export"][1:4] == ["scripts/export.py", "--checkpoint", str(run)]


def test_a_card_that_somebody_edited_stays(tmp_path):
    run, words = tmp_path / "run", flags(write_sudoku(tmp_path / "data"), tmp_path / "run", max_steps=2)
    assert pretrain(words).code == 0
    first = (run / CARD_FILE).read_text()
    (run / "steps.png").write_bytes(b"")
    again = [word for word in words if not word.startswith("max_steps")]
    assert pretrain([*again, "max_steps=4", "resume=true"]).code == 0
    second = (run / CARD_FILE).read_text()
    assert first != second and "![steps](steps.png)" in second and "4 steps" in second
    (run / CARD_FILE).write_text(second.replace(MARK, "mine"))
    assert pretrain([*again, "max_steps=6", "resume=true"]).code == 0
    assert (run / CARD_FILE).read_text() == second.replace(MARK, "mine")


def test_text_has_the_best_evaluation_beside_the_last(tmp_path):
    words = text_flags(
        write_corpus(tmp_path / "data"), tmp_path / "run", epochs=4, eval_interval=1, best_metric="accuracy"
    )
    assert train_text(words).code == 0
    card = (tmp_path / "run" / CARD_FILE).read_text()
    best = (tmp_path / "run/best").resolve().name.removeprefix("step_")
    assert f"step {best}, the best" in card and FREQUENCIES in card and COMMONEST in card
    assert "generate_instruct.py" in card and "serve.py" in card


def test_nothing_held_out_is_said(tmp_path):
    words = text_flags(write_corpus(tmp_path / "data"), tmp_path / "run", epochs=1, dataset__test_ratio=0)
    assert train_text(words).code == 0
    assert "Nothing was held out" in (tmp_path / "run" / CARD_FILE).read_text()


def test_a_guess_is_counted_by_document():
    batch = {
        "inputs": torch.tensor([[1, 2, 3, 4], [1, 2, 8, 9]]),
        "labels": torch.tensor([[2, 2, -100, 5], [2, 2, 9, 9]]),
        "documents": torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]),
    }
    scores = baselines([("test", batch, 2)])["test"]
    assert scores["token_accuracy"] == (COMMONEST, pytest.approx(4 / 7))
    assert scores["exact_accuracy"] == (COMMONEST, 2 / 4)  # of [2, 2], [5], [2, 2], [9, 9]
    copied = {name: value[:1] if name != "documents" else value[:1] * 0 for name, value in batch.items()}
    copied["labels"] = copied["inputs"]
    assert baselines([("a", copied, 1)])["a"]["accuracy"] == (COPIED, 1.0)
    assert baselines([("a", {"inputs": torch.zeros(1, 1)}, 1)]) == {}


def test_kinds_are_told_apart(tmp_path):
    chat = {"dataset_type": "chat", "data_paths": ["a"]}
    assert [kind_of(chat), kind_of({"dataset": {}}), kind_of({})] == ["chat", "instruct", "-"]
    assert data_of({"dataset": {"source": "sample"}}).startswith("made-up") and data_of(chat) == "a"
    assert "a/b" in data_of({"dataset": {"source": "auto", "repo": "a/b", "data_dir": None}})
    assert "a/b, then c" in data_of({"dataset": {"source": "auto", "stages": [{"repo": "a/b"}, {"repo": "c"}]}})
    said = commands({"lora_rank": 1}, tmp_path, "resume it")
    assert len(said) == 1 and said[0].startswith("resume it")
    assert any("--interactive" in line for line in commands(chat, tmp_path, "resume it"))


def test_a_card_that_cannot_be_written_fails_no_run(tmp_path, monkeypatch):
    def full(target, content):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("engine.card.card.write_file", full)
    ended = pretrain(flags(write_sudoku(tmp_path / "data"), tmp_path / "run", max_steps=2))
    assert ended.code == 0 and "No space left" in ended.err and ended.report
