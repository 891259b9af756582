"""Which checkpoint a path means, and what is taken, and said, where the one that was meant is damaged."""

import json
import os
from pathlib import Path

import pytest
import torch

from engine.checkpoints.find import LATEST, find_damage, latest_step
from engine.checkpoints.load import DamagedError, load_checkpoint
from engine.checkpoints.run_directory import checkpoint_to_resume
from engine.checkpoints.save import CheckpointStore
from tests.tiny import CPU


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The steps 1 to 3, of which 2 is the best and 3 the latest."""
    store = CheckpointStore(tmp_path / "run")
    for step in (1, 2, 3):
        weights = {"w": torch.full((4,), float(step))}
        store.save(step, model=weights, ema=None, trainer={"step": step}, config_yaml="a: 1\n", meta={})
    store.mark_best(2)
    store.wait()
    return tmp_path / "run"


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
@pytest.mark.parametrize("file", ["model.safetensors", "trainer.pt", "meta.json"])
def test_a_resume_says_which_file_of_the_latest_is_damaged_and_what_it_takes_instead(
    run_dir: Path, file: str, how: str
) -> None:
    damage(run_dir / "step_3" / file, how)
    said: list[str] = []
    if file == "meta.json" and how != "gone":
        (run_dir / "step_3" / file).write_text("{")
    found = checkpoint_to_resume(LATEST, run_dir, CPU, said.append)
    assert found is not None and found.path == run_dir / "step_2"
    (text,) = said
    assert "step_3" in text and file in text and str(run_dir / "step_2") in text


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_a_damaged_best_gives_way_to_the_latest(run_dir: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run_dir / "step_2" / "model.safetensors", how)
    assert load_checkpoint(run_dir).path == run_dir / "step_3"
    said = capsys.readouterr()
    assert said.out == "" and "step_2" in said.err and "model.safetensors" in said.err and "step_3" in said.err


def test_what_is_whole_is_taken_without_a_word(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_checkpoint(run_dir).path == run_dir / "step_2"
    assert load_checkpoint(run_dir, prefer=LATEST).path == run_dir / "step_3"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", ["latest", "directory"])
def test_a_run_without_a_whole_checkpoint_is_refused_with_every_damage(run_dir: Path, asked: str) -> None:
    for step, how in ((1, "gone"), (2, "cut"), (3, "changed")):
        damage(run_dir / f"step_{step}" / "model.safetensors", how)
    with pytest.raises(DamagedError) as refused:
        checkpoint_to_resume(LATEST if asked == "latest" else str(run_dir), run_dir, CPU)
    assert all(word in str(refused.value) for word in ("step_1", "step_2", "step_3", "run_name", "--output-dir"))


def test_steps_beyond_the_latest_belong_to_a_run_that_was_left(run_dir: Path) -> None:
    (run_dir / "latest").unlink()
    (run_dir / "latest").symlink_to("step_2")
    damage(run_dir / "step_2" / "model.safetensors", "cut")
    assert load_checkpoint(run_dir, prefer=LATEST).path == run_dir / "step_1"


@pytest.mark.parametrize("target", ["latest", "step_9", "../elsewhere"])
def test_a_link_that_leads_nowhere_is_said(run_dir: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("latest", "best"):
        (run_dir / name).unlink()
        (run_dir / name).symlink_to(target if target != "latest" else name)
    assert load_checkpoint(run_dir).path == run_dir / "step_3" and latest_step(run_dir) == 3
    assert Path(target).name in capsys.readouterr().err
    CheckpointStore(run_dir, keep_last=1)._remove_old(3)
    assert (run_dir / "step_3").is_dir()
    with pytest.raises(ValueError, match="latest"):
        load_checkpoint(run_dir / "latest")


def test_a_run_whose_steps_are_gone_is_refused(run_dir: Path) -> None:
    for step in (1, 2, 3):
        (run_dir / f"step_{step}").rename(run_dir.parent / f"step_{step}")
    with pytest.raises(DamagedError, match="step_3"):
        checkpoint_to_resume(LATEST, run_dir, CPU)


def test_a_damaged_checkpoint_that_was_named_is_refused(run_dir: Path) -> None:
    damage(run_dir / "step_3" / "model.safetensors", "cut")
    for name in ("step_3", "latest"):
        with pytest.raises(DamagedError, match=r"model\.safetensors.*step_1/"):
            load_checkpoint(run_dir / name)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "a/b", "..", "", "a\\b", "x" * 5000, "a\0b"])
def test_a_meta_file_names_files_of_its_folder_only(run_dir: Path, name: str) -> None:
    (run_dir / "secret.json").write_text("{}")
    meta = json.loads((run_dir / "step_3" / "meta.json").read_text())
    meta["files"][name] = {"size": 2, "sha256": "0"}
    (run_dir / "step_3" / "meta.json").write_text(json.dumps(meta))
    assert find_damage(run_dir / "step_3") is not None
    with pytest.raises(DamagedError, match="step_3"):
        load_checkpoint(run_dir / "step_3")


@pytest.mark.parametrize("content", ["[" * 200_000, '{"files": {"a": {"size": 1e999, "sha256": "0"}}}', '{"files": 3}'])
def test_a_meta_file_of_any_content_is_damage(run_dir: Path, content: str) -> None:
    (run_dir / "step_3" / "meta.json").write_text(content)
    assert "meta.json" in (find_damage(run_dir / "step_3") or "")


def test_a_step_that_was_being_replaced_when_killed_is_resumed(run_dir: Path) -> None:
    os.rename(run_dir / "step_3", run_dir / ".step_3.old-999")
    CheckpointStore(run_dir)
    found = checkpoint_to_resume(LATEST, run_dir, CPU)
    assert found is not None and found.path == run_dir / "step_3"
