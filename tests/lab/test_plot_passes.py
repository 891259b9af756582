"""The picture of an evaluation by depth, and a file that has none."""

import json
from pathlib import Path

import pytest

from lab.plot_passes import draw, read_evaluation
from scripts.plot_passes import main

pytest.importorskip("matplotlib")


def write(folder: Path, content: object) -> Path:
    file = folder / "metrics_step_3.json"
    file.write_text(json.dumps(content))
    return file


def evaluation(**accuracies: list[float]) -> dict:
    return {
        name: {"count": 5, "by_depth": {str(depth): {"exact_accuracy": value} for depth, value in enumerate(values, 1)}}
        for name, values in accuracies.items()
    }


def test_every_set_has_a_line_and_every_pass_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, evaluation(id2=[0.04, 1.0, 0.99], id3=[0.05, 0.06, 0.875]))
    (axes,) = draw(read_evaluation(file)).axes
    assert [text.get_text() for text in axes.texts] == ["0.04", "1.00", "0.99", "0.05", "0.06", "0.88"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["id2", "id3"]
    main([str(file)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "metrics_step_3.png")
    assert (tmp_path / "metrics_step_3.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "content", [{}, {"test": {"count": 1}}, {"test": {"by_depth": {}}}, {"test": {"by_depth": {"1": {"loss": 1}}}}, [1]]
)
def test_a_file_without_depths_is_refused_with_what_to_give(tmp_path: Path, content: object) -> None:
    with pytest.raises(SystemExit, match="metrics_step_<N>.json"):
        main([str(write(tmp_path, content))])
