"""The table of tries: its numbers are those of evaluations, of one pass over the tries."""

import runpy
import sys

import numpy as np
import pytest
import torch

import lab.puzzle_pictures.tries as tries
from dataset.puzzles.samples import pick_samples
from engine.build.puzzle_checkpoint import load_puzzle_model
from engine.build.puzzles import build_effort
from engine.checkpoints.load import load_checkpoint
from engine.config.schema import EvalConfig
from engine.tasks.rollouts import roll_out
from engine.tasks.traces import batch_of
from tests.tiny import flags, pretrain, write_sudoku

PROGRAM = "lab.puzzle_pictures"
NOISE, TRIES = 0.5, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny model and puzzles whose labels are what its tries say, of each another one: (its data, its run folder)."""
    place = tmp_path_factory.mktemp("tries")
    data = write_sudoku(place / "data")
    assert pretrain(flags(data, place / "run")).code == 0
    model = load_puzzle_model(load_checkpoint(str(place / "run")), "cpu")
    _, samples = pick_samples(data, None, 0)
    answers = []
    for options in ({"noise": NOISE}, {"disguises": True}):
        effort = build_effort(EvalConfig(rollouts=TRIES, **options), model.config.seed, model.metadata, "data")
        model.head.eval().model.inner.depth = effort.depth_of(model.head.model.config)
        with torch.no_grad():
            tried = [roll_out(model.head.model, batch_of(samples), effort, number)[1] for number in range(TRIES)]
        answers += [outputs["logits"].argmax(-1).numpy() for outputs in tried]
    file = data / "test" / "all__labels.npy"
    labels = np.load(file)
    for row in range(len(labels)):
        labels[row] = answers[row % len(answers)][row]
    np.save(file, labels)
    return data, place / "run"


def printed(monkeypatch, capsys, run_dir, *words: str) -> tuple[str, dict[tuple[str, int], list[float]]]:
    monkeypatch.setattr(sys, "argv", [PROGRAM, "--checkpoint", str(run_dir), "--device", "cpu", *words])
    runpy.run_module(PROGRAM, run_name="__main__")
    title, _, _, _, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return title, {(way, int(number)): [float(value) for value in values] for way, number, *values in cells}


def test_each_row_is_what_an_evaluation_of_so_many_tries_reports(run, tmp_path, monkeypatch, capsys):
    data, run_dir = run
    monkeypatch.setattr(tries, "ROWS", 4)  # 10 puzzles: whole batches and a rest
    number_of_tries = []
    monkeypatch.setattr(tries, "roll_out", lambda *given: number_of_tries.append(given[-1]) or roll_out(*given))
    title, rows = printed(monkeypatch, capsys, run_dir, "--tries", str(TRIES), "--noise", str(NOISE))
    assert "10 held-out puzzles" in title and [key[1] for key in rows] == [1, 2, 4] * 2
    assert sorted(number_of_tries) == sorted(3 * [0, 1, 1, 2, 2, 3, 3]), "the plain try is shared, no other is repeated"
    judge = {"load_checkpoint": str(run_dir / "latest"), "eval_only": True, "eval.rollouts": TRIES}
    for way, option in (("noise", {"eval.noise": NOISE}), ("disguises", {"eval.disguises": True})):
        steps, _, surest, vote, at_least_one = rows[way, 4]
        assert steps == 12 and rows[way, 1][2:] == [rows["noise", 1][2]] * 3
        for choose, share in (("surest", surest), ("vote", vote)):
            words = flags(data, tmp_path / "none", **judge, **option, **{"eval.choose": choose})
            report = pretrain(words).report["all"]
            assert report["exact_accuracy"] == pytest.approx(share, abs=5e-4)
            assert report["pass_any"] == pytest.approx(at_least_one, abs=5e-4)
            assert report["pass_plain"] == pytest.approx(rows[way, 1][2], abs=5e-4)
        assert at_least_one > rows[way, 1][4] > 0, "or the test would not see tries"


def test_noise_may_be_left_out_a_picture_be_drawn_and_other_data_be_refused(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    _, run_dir = run
    words = ["--tries", "3", "--noise", "0", "--count", "3", "--output", str(tmp_path / "a.png")]
    title, rows = printed(monkeypatch, capsys, run_dir, *words)
    assert list(rows) == [("disguises", 1), ("disguises", 2)] and "3 held-out puzzles" in title
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"^error: .*nowhere"):
        printed(monkeypatch, capsys, run_dir, "--data-path", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        printed(monkeypatch, capsys, run_dir, "--noise", "-1")
    assert "-1 is not a number of 0 or more" in capsys.readouterr().err
