"""Tests of scratch folders: they go, leftovers too, and one that is in use stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from dataset.files.scratch import LOCK_FILE, PREFIX, scratch_folder
from tests.tiny import ROOT

HOLD = "from dataset.files.scratch import scratch_folder\nwith scratch_folder() as it: print(it, flush=True); input()"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_closed_to_others_and_goes_also_after_a_failure(root: Path) -> None:
    with pytest.raises(ValueError, match="inside"), scratch_folder() as folder:
        assert folder.parent == root and folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("text")
        raise ValueError("inside")
    assert list(root.iterdir()) == []


def test_leftovers_go_and_what_another_process_uses_stays(root: Path) -> None:
    left, other = root / f"{PREFIX}0_left", root / "of_somebody"
    for folder in (left, other):
        folder.mkdir()
    (left / LOCK_FILE).touch()
    environment = {"TMPDIR": str(root), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        used = Path(process.stdout.readline().strip())
        assert used.exists() and not left.exists()
        with scratch_folder() as one, scratch_folder() as two:
            assert used.exists() and one.exists() and two.exists()
        process.kill()
    assert used.exists()
    with scratch_folder():
        assert not used.exists() and other.exists()


def test_a_link_is_never_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / f"{PREFIX}0_link").symlink_to(elsewhere)
    with scratch_folder():
        assert list(elsewhere.iterdir()) == []
