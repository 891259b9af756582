"""A checkpoint can be watched while it solves test puzzles; the picture agrees with its evaluation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoints.load import load_checkpoint
from lab.puzzle_pictures.show_puzzles import show_puzzles
from tests.tiny import flags, logged, pretrain, write_sudoku

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained tiny model: (its data, its run folder)."""
    place = tmp_path_factory.mktemp("show")
    data = write_sudoku(place / "data")
    assert pretrain(flags(data, place / "run", ema=True, ema_rate=0.5)).code == 0
    return data, place / "run"


def shown(capsys, checkpoint, output, **changes) -> list[str]:
    """Lines of the summary, without the path of the picture above them."""
    settings = {"data_path": None, "count": 4, "seed": 0, "device": "cpu"} | changes
    show_puzzles(str(checkpoint), output=output, **settings)
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(output)
    return lines


def test_the_picture_agrees_with_the_evaluation_of_the_same_weights(run, tmp_path, capsys):
    _, run_dir = run
    lines = shown(capsys, run_dir / "latest", tmp_path / "all.png", count=10)
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    wrong = [[int(number) for number in line.rpartition(":")[2].split()] for line in lines]
    assert np.array(wrong).shape == (10, 3), "all held-out puzzles, all supervision steps"
    last = [line for line in logged(run_dir) if "all/accuracy" in line][-1]
    assert 1 - np.array(wrong)[:, -1].mean() / 16 == pytest.approx(last["all/accuracy"])
    assert 0 < last["all/accuracy"] < 1


def test_seed_and_count_choose_and_another_data_set_may_be_named(run, tmp_path, capsys):
    data, run_dir = run
    first, again, other = (shown(capsys, run_dir, tmp_path / "a.png", seed=seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 4
    moved = write_sudoku(tmp_path / "elsewhere")
    assert shown(capsys, run_dir, tmp_path / "a.png", seed=1, data_path=str(moved)) == first
    assert len(shown(capsys, run_dir, tmp_path / "a.gif", count=2)) == 2
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output": "a.jpg"}, ".png or .gif"),
        ({"count": 33}, "--count 33.*32"),
        ({"data_path": "nowhere"}, "nowhere"),
        ({"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_to_do(run, tmp_path, monkeypatch, changes, expected):
    monkeypatch.chdir(tmp_path)
    settings = {"checkpoint": str(run[1]), "data_path": None, "count": 1, "seed": 0, "output": "a.png"} | changes
    with pytest.raises(ValueError, match=expected):
        show_puzzles(**(settings | {"output": Path(settings["output"])}))
    assert not list(tmp_path.iterdir())


def test_weights_without_their_config_are_refused_and_with_it_are_drawn(run, tmp_path, capsys):
    loaded = load_checkpoint(run[1])
    torch.save(loaded.weights | loaded.ema, tmp_path / "step_9")
    with pytest.raises(ValueError, match="all_config.yaml"):
        shown(capsys, tmp_path / "step_9", tmp_path / "a.png")
    (tmp_path / "all_config.yaml").write_text(loaded.config_yaml)
    assert shown(capsys, tmp_path / "step_9", tmp_path / "a.png") == shown(capsys, run[1], tmp_path / "b.png")
    (tmp_path / "all_config.yaml").write_text("arch: {loss: {name: text_loss@TextLossHead}}")
    with pytest.raises(ValueError, match="text"):
        shown(capsys, tmp_path / "step_9", tmp_path / "a.png")
    (tmp_path / "all_config.yaml").write_text("epochs: 3")
    with pytest.raises(ValueError, match="arch"):
        shown(capsys, tmp_path / "step_9", tmp_path / "a.png")


def test_a_missing_matplotlib_is_an_error_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="matplotlib.*pip install"):
        shown(capsys, tmp_path / "nowhere", tmp_path / "a.png")
