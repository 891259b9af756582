"""Which checkpoint a resume means, by every name that it can be called."""

from pathlib import Path

import pytest
import torch

from engine.checkpoints.run_directory import checkpoint_to_resume, step_directory
from engine.checkpoints.save import CheckpointStore
from tests.tiny import CPU


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "run")
    for step in (1, 2):
        weights = {"w": torch.full((1,), float(step))}
        store.save(step, model=weights, ema=None, trainer={"state": {}}, config_yaml="", meta={})
    store.mark_best(1)
    store.wait()
    (tmp_path / "run" / "checkpoint_latest.pt").symlink_to(Path("latest") / "trainer.pt")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "step"),
    [(".", 2), ("step_1", 1), ("checkpoint-1", 1), ("latest", 2), ("best", 1), ("checkpoint_latest.pt", 2)],
)
def test_every_name_of_a_checkpoint_is_understood(run_dir: Path, name: str, step: int) -> None:
    assert step_directory(str(run_dir / name)).resolve() == run_dir / f"step_{step}"


def test_latest_is_that_of_the_run_directory_if_there_is_one(run_dir: Path, tmp_path: Path) -> None:
    found = checkpoint_to_resume("latest", run_dir, CPU)
    assert found is not None and found.path == run_dir / "step_2" and found.trainer == {"state": {}}
    assert checkpoint_to_resume("latest", tmp_path / "empty", CPU) is None
    assert checkpoint_to_resume(None, run_dir, CPU) is None


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        step_directory(str(tmp_path / "nowhere"))
