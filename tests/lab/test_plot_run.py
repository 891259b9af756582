"""The picture of a run holds its curves, and a run that cannot be drawn is answered with what to do."""

import errno
import json
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import plot_run as curves
from scripts import plot_run
from tests.tiny import run_python

matplotlib = pytest.importorskip("matplotlib")

DOOR = Path(plot_run.__file__)
MEAN_LOSS = "Loss, mean over examples"


def write_run(run_dir: Path, num_steps: int = 12, **more) -> Path:
    run_dir.mkdir(parents=True)
    lines = []
    for step in range(1, num_steps + 1):
        values = {"train/lm_loss": 2 / step, "train/exact_accuracy": step / num_steps, "train/lr": 1e-4}
        lines.append({"step": step, "time": 0.5 * step, "perf/step_seconds": 0.1, **values, **more})
        if step % 4 == 0:
            lines.append({"step": step, "all/lm_loss": 3 / step, "all/steps": 16, "ARC/pass@1": 0.5})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def panels(figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def key_of(found: dict) -> dict[str, str]:
    """What the key names -> its colour."""
    texts = found["Key"].get_legend().get_texts()
    return {text.get_text(): text.get_color() for text in texts}


def test_default_picture_lands_in_the_run_folder(tmp_path, capsys):
    run_dir = write_run(tmp_path / "first")

    plot_run.main([str(run_dir)])

    assert capsys.readouterr().out == f"{run_dir / 'plot.png'}\n"
    assert (run_dir / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_panels_show_the_numbers_of_the_file(tmp_path):
    found = panels(curves.draw([curves.read_run(write_run(tmp_path / "first"))]))

    assert list(found) == [MEAN_LOSS, "Exact accuracy", "ACT steps", "Learning rate", "Key"]
    train, held_out = found[MEAN_LOSS].lines
    assert list(train.get_xdata()) == list(range(1, 13))
    assert list(train.get_ydata()) == [2 / step for step in range(1, 13)]
    assert list(held_out.get_xdata()) == [4, 8, 12] and held_out.get_ydata()[-1] == 3 / 12
    assert [text.get_text() for text in found[MEAN_LOSS].texts] == ["train  0.167", "all  0.25"]
    assert [text.get_text() for text in found["Exact accuracy"].texts] == ["train  100.0%"]
    assert key_of(found) == {"train": train.get_color(), "all": held_out.get_color()}


def test_means_over_tokens_and_over_examples_are_told_apart(tmp_path):
    text = {"train/token_loss": 4.5, "train/token_accuracy": 0.4, "train/accuracy": 0.7}
    text_run = write_run(tmp_path / "text", **text)
    distilled = {"step": 1, "train/ce": 3.0, "train/kd": 1.0, "train/accuracy": 0.25}
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "metrics.jsonl").write_text(json.dumps(distilled) + "\n")

    shown = panels(curves.draw([curves.read_run(text_run)]))
    assert shown["Loss per token"].lines[0].get_ydata()[-1] == 4.5
    assert shown[MEAN_LOSS].lines[0].get_ydata()[-1] == 2 / 12
    assert shown["Token accuracy"].lines[0].get_ydata()[-1] == 0.4
    assert shown["Accuracy, mean over examples"].lines[0].get_ydata()[-1] == 0.7

    shown = panels(curves.draw([curves.read_run(tmp_path / "distilled")]))
    assert list(shown) == ["Loss per token", "Token accuracy", "Key"], "a distillation has no means over examples"
    assert shown["Token accuracy"].lines[0].get_ydata()[0] == 0.25


def test_many_noisy_steps_are_averaged_but_stay_visible(tmp_path):
    run_dir = tmp_path / "noisy"
    run_dir.mkdir()
    losses = [1.0 + (-1) ** step * 0.5 for step in range(400)]
    lines = [json.dumps({"step": step, "train/lm_loss": loss}) for step, loss in enumerate(losses)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    noise, average = panels(curves.draw([curves.read_run(run_dir)]))[MEAN_LOSS].lines

    assert list(noise.get_ydata()) == losses
    assert max(abs(value - 1) for value in average.get_ydata()[100:]) < 0.05


def test_steps_without_finished_rows_do_not_count(tmp_path):
    run_dir = tmp_path / "halting"
    run_dir.mkdir()
    lines = []
    for step in range(1, 201):
        finished = {0: (8, 0.5), 1: (2, 1.0)}.get(step % 4, (0, 0.0))
        lines.append({"step": step, "train/lm_loss": 1.0, "train/count": finished[0], "train/accuracy": finished[1]})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = panels(curves.draw([curves.read_run(run_dir)]))

    assert len(found[MEAN_LOSS].lines[0].get_xdata()) == 200
    noise, average = found["Accuracy, mean over examples"].lines
    assert sorted(set(noise.get_ydata())) == [0.5, 1.0]
    assert average.get_ydata()[-2:].mean() == pytest.approx(0.6, abs=0.05), "the mean over rows, not over steps"


def test_several_runs_share_the_axes_in_different_colours(tmp_path, capsys):
    run_dirs = [write_run(tmp_path / name) for name in ("first", "second")]

    found = panels(curves.draw([curves.read_run(run_dir) for run_dir in run_dirs]))
    assert len(found[MEAN_LOSS].lines) == 4
    assert len({line.get_color() for line in found[MEAN_LOSS].lines}) == 2
    assert key_of(found).keys() == {"first", "second", "all", "train"}

    plot_run.main([*map(str, run_dirs), "--output", str(tmp_path / "new" / "both.png")])
    assert (tmp_path / "new" / "both.png").is_file()
    plot_run.main([*map(str, run_dirs)])
    assert capsys.readouterr().out.endswith(f"{run_dirs[0] / 'comparison.png'}\n")


def test_nonfinite_values_are_gaps(tmp_path):
    run_dir = write_run(tmp_path / "first")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lm_loss": null, "nonfinite": {"train/lm_loss": "nan"}}\n')

    axes = panels(curves.draw([curves.read_run(run_dir)]))[MEAN_LOSS]
    assert math.isnan(axes.lines[0].get_ydata()[-1])
    assert axes.texts[0].get_text() == "train  0.167", "the last finite value is the one to name"


def test_constant_zero_curves_can_be_drawn(tmp_path):
    write_run(tmp_path / "zero", **{"train/lm_loss": 0.0, "train/accuracy": 0.0, "train/lr": 0.0, "train/steps": None})
    plot_run.main([str(tmp_path / "zero")])
    assert (tmp_path / "zero" / "plot.png").is_file()


def test_line_that_is_just_being_written_is_left_out(tmp_path):
    run_dir = write_run(tmp_path / "first")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lm_lo')
    assert max(curves.read_run(run_dir).curves["train", "lm_loss"]) == 12


def test_line_that_cannot_be_read_is_passed_over_and_mentioned(tmp_path, capsys):
    run_dir = write_run(tmp_path / "first")
    whole = curves.read_run(run_dir).curves["train", "lm_loss"]
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join([*lines[:2], b"\xff" + lines[2][1:], *lines[3:]]))
    found = curves.read_run(run_dir).curves["train", "lm_loss"]
    assert len(found) == len(whole) - 1 and max(found) == max(whole)
    assert "metrics.jsonl" in (err := capsys.readouterr().err) and "line 3" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"metrics\.jsonl"),
        ("", "train/lm_loss"),
        ('{"step": 1, "perf/step_seconds": 2}\n', "train/lm_loss"),
        ('{"step": 1}\nbroken\n', "train/lm_loss"),
    ],
)
def test_runs_that_cannot_be_drawn_say_why(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{said}"):
        plot_run.main([str(tmp_path)])
    assert capsys.readouterr().out == "" and not (tmp_path / "plot.png").exists()


def test_missing_matplotlib_says_how_to_install_it(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.layout_engine"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install -e '\.\[plots\]'"):
        plot_run.main([str(write_run(tmp_path / "first"))])


def test_a_full_disk_names_the_picture_and_leaves_none(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_run(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match="plot.png.*disk is full"):
        plot_run.main([str(tmp_path / "run")])
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_the_script_runs_by_path_from_anywhere(tmp_path):
    write_run(tmp_path / "first")
    done = run_python([DOOR, "first"], tmp_path)
    assert (done.code, done.out) == (0, "first/plot.png\n"), done.err
    assert "RUN_DIR" in run_python([DOOR, "--help"], tmp_path).out


def test_too_many_runs_are_refused(capsys):
    with pytest.raises(SystemExit):
        plot_run.main(["run"] * 9)
    assert "give at most 8" in capsys.readouterr().err


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_labels_never_touch(heights):
    placed = curves.spread(heights, gap=0.1)
    assert len(placed) == len(heights)
    assert all(upper - lower >= 0.1 - 1e-9 for lower, upper in zip(placed, placed[1:], strict=False))
    assert all(place <= 1 + 1e-9 for place in placed)
    if all(upper - lower >= 0.1 for lower, upper in zip(heights, heights[1:], strict=False)):
        assert placed == pytest.approx(heights)
