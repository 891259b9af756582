"""Kills and full disks in the middle of a save cost nothing but that save."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoints import save as checkpoint_module
from engine.checkpoints.load import load_checkpoint
from engine.checkpoints.run_directory import RunDirectory
from engine.checkpoints.save import CheckpointError, CheckpointStore
from engine.train.evaluate import evaluate
from tests.tiny import CPU, ROOT, end, first_line, start_python


def save(store: CheckpointStore, step: int, *, value: float | None = None, **changes) -> None:
    filled = float(step) if value is None else value
    content = {
        "model": {"model.inner.weight": torch.full((2, 3), filled)},
        "ema": None,
        "trainer": {"step": step},
        "config_yaml": "arch: {}\n",
        "meta": {"metric": 0.5},
    }
    store.save(step, **(content | changes))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run")


@pytest.fixture
def two_steps(store):
    save(store, 1)
    save(store, 2)
    store.wait()
    return store.run_dir


def tree(folder: Path) -> dict[str, str]:
    """Every file and link below a folder with its content, to see that nothing changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_leftovers_of_killed_writes_are_removed(two_steps):
    before = tree(two_steps)
    shutil.copytree(two_steps / "step_2", two_steps / ".step_3.tmp-999")
    (two_steps / ".latest.tmp-999").symlink_to("step_3")

    assert CheckpointStore(two_steps).latest_step() == 2
    assert tree(two_steps) == before


def test_step_that_was_being_replaced_is_put_back(two_steps):
    before = tree(two_steps)
    (two_steps / "step_2").rename(two_steps / ".step_2.old-999")

    assert CheckpointStore(two_steps).latest_step() == 2
    assert tree(two_steps) == before


def test_replaced_step_gives_way_to_its_successor(two_steps):
    before = tree(two_steps)
    shutil.copytree(two_steps / "step_1", two_steps / ".step_2.old-999")

    CheckpointStore(two_steps)
    assert tree(two_steps) == before


SAVE_FOREVER = """
import sys
from pathlib import Path
import torch
from engine.checkpoints.save import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), keep_last=2)
step = store.latest_step() or 0
print("ready", flush=True)
while True:
    step += 1
    weights = {f"w{i}": torch.full((100_000,), float(step)) for i in range(4)}
    store.save(step, model=weights, ema=weights, trainer={"moments": weights}, config_yaml="x: 1", meta={})
    if step % 3 == 0:
        store.mark_best(step)
"""


def test_killed_writer_leaves_the_earlier_state_loadable(tmp_path):
    reached = 0
    for delay in (0.20, 0.31, 0.44):
        process = start_python(["-c", SAVE_FOREVER, tmp_path], ROOT)
        assert first_line(process) == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        end(process)

        step = CheckpointStore(tmp_path).latest_step()
        assert step is not None and step > reached, "each life must get further than the one before"
        reached = step
        for path in tmp_path.glob("step_*"):
            loaded = load_checkpoint(path, with_trainer=True)
            value = loaded.meta["step"]
            tensors = [*loaded.weights.values(), *loaded.ema.values(), *loaded.trainer["moments"].values()]
            assert all(torch.equal(tensor, torch.full((100_000,), float(value))) for tensor in tensors)
        assert not list(tmp_path.glob(".*"))


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["_write_folder", "_fsync", "file_sha256"])
def test_full_disk_leaves_earlier_checkpoints_untouched(two_steps, monkeypatch, failing):
    store = CheckpointStore(two_steps, keep_last=1)
    before = tree(two_steps)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, failing, full_disk)
        save(store, 3)
        with pytest.raises(CheckpointError) as caught:
            store.wait()

    message = str(caught.value)
    assert "step 3 could not be written" in message and "disk is full" in message
    assert re.search(r"about [\d,]+ bytes needed, [\d,]+ free", message)
    assert str(two_steps / "step_2") in message and "resume=true" in message
    assert tree(two_steps) == before
    save(store, 3)
    store.wait()
    assert store.latest_step() == 3, "with room again, saving goes on"


def test_failed_replacement_puts_the_old_step_back(two_steps, monkeypatch):
    store = CheckpointStore(two_steps)
    before = tree(two_steps)
    rename = Path.rename

    def fail_on_temporary(path, target):
        if ".tmp-" in path.name:
            full_disk()
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail_on_temporary)
        save(store, 2, value=9.0)
        with pytest.raises(CheckpointError):
            store.wait()
    assert tree(two_steps) == before


def test_failed_write_is_reported_by_the_next_save(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_write_folder", full_disk)
        save(store, 1)
        with pytest.raises(CheckpointError, match="There is no earlier checkpoint"):
            save(store, 2)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 3 MB, where mounting one is allowed."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount_point)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


@pytest.mark.parametrize("part", ["model", "trainer", "files"])
def test_really_full_disk_names_the_last_good_checkpoint(small_disk, tmp_path, part):
    store = CheckpointStore(small_disk)
    save(store, 1)
    store.wait()
    before = tree(small_disk)
    large = torch.zeros(1_000_000)
    huge_file = tmp_path / "tokenizer.bin"
    huge_file.write_bytes(bytes(4_000_000))
    changes = {"model": {"model": {"w": large}}, "trainer": {"trainer": {"w": large}}, "files": {"files": [huge_file]}}

    save(store, 2, **changes[part])
    with pytest.raises(CheckpointError, match=r"(?s)step 2 could not be written.*disk is full.*step_1; .*resume=true"):
        store.wait()

    assert tree(small_disk) == before
    assert load_checkpoint(small_disk).weights["model.inner.weight"][0, 0] == 1


def test_outputs_that_find_no_room_are_named_and_leave_nothing(small_disk):
    class Wide:
        """Hands out more than the disk holds."""

        def eval_batch(self, batch, return_keys):
            return {"count": torch.ones(())}, {name: torch.zeros(4, 1_000_000) for name in return_keys}

        def eval_report(self, sums):
            return sums

    with pytest.raises(ValueError, match=r"end_all_preds\.0.*disk is full"):
        evaluate(Wide(), [("all", {}, 4)], ["all"], CPU, save_outputs=["logits"], output_dir=small_disk, label="end")
    assert list(small_disk.iterdir()) == []


def test_the_config_of_a_run_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path, "project", "run", "a: 1\n")
    directory.write_config()
    (tmp_path / "config.yaml.123.tmp").write_text("a:")  # of a kill
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(ValueError, match=rf"{tmp_path / 'config.yaml'}.*disk is full"):
            RunDirectory(tmp_path, "project", "run", "b: 2\n").write_config()
    CheckpointStore(tmp_path)
    assert tree(tmp_path) == {"config.yaml": hashlib.sha256(b"a: 1\n").hexdigest()}
