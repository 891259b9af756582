"""Files appear whole or not at all; errors of the disk are told."""

import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from dataset.files.disk import check_space, disk_errors, exclusive_lock, file_sha256, new_file, write_file


def test_a_file_appears_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_file(target, "é")
    with new_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == "é".encode()
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")
    with pytest.raises(KeyError), new_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_the_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two blocks
    write_file(tmp_path / "a", content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_told_with_both_numbers(tmp_path: Path) -> None:
    check_space(tmp_path, 1000)
    with pytest.raises(ValueError, match=r"a/b.*1000000000000.0 MB .*disk is full"), disk_errors(tmp_path / "a/b"):
        check_space(tmp_path, 10**18)
    with pytest.raises(ValueError, match="Permission") as caught, disk_errors(tmp_path):
        raise OSError(errno.EACCES, "Permission denied")
    assert "disk is full" not in str(caught.value)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_what_a_file_held_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_file(tmp_path / "a", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, failing, full)
        with pytest.raises(ValueError, match=rf"{tmp_path / 'a'}.*disk is full"):
            write_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_an_error_of_the_disk_is_found_below_others(tmp_path: Path) -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected position")  # noqa: B904 - as torch.save does

    with pytest.raises(ValueError, match="disk is full"), disk_errors(tmp_path):
        wrapped()
    with pytest.raises(RuntimeError, match="of another kind"), disk_errors(tmp_path):
        raise RuntimeError("of another kind")


def test_a_second_holder_is_refused_and_told_which_directory(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "deep" / "run"):
        assert (tmp_path / "deep" / "run").is_dir()
        with pytest.raises(ValueError, match="deep/run"), exclusive_lock(tmp_path / "deep" / "run"):
            pass


def test_the_lock_is_released_at_the_end_and_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive_lock(tmp_path):
        raise KeyError
    with exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    with exclusive_lock(tmp_path):
        child.start()
    began = time.monotonic()
    with exclusive_lock(tmp_path, wait=True):  # the child may take a moment to close it
        assert time.monotonic() - began < 15
    child.kill()
    child.join()


def test_a_directory_made_for_a_lock_goes_if_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus"), exclusive_lock(tmp_path / "new" / "run"):
        raise ValueError("no corpus")
    assert not (tmp_path / "new").exists()
    with exclusive_lock(tmp_path / "kept"):
        (tmp_path / "kept" / "config.yaml").write_text("")
    assert (tmp_path / "kept" / "config.yaml").exists()


def test_what_is_no_file_is_never_replaced(tmp_path):
    target = tmp_path / "pipe"
    os.mkfifo(target)
    with pytest.raises(ValueError, match=str(target)):
        write_file(target, "x")
    assert target.is_fifo() and list(tmp_path.iterdir()) == [target]
