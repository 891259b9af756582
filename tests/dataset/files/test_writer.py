"""A data set appears whole or not at all, and nobody's files are lost."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataset.files.writer import create_array, dataset_folder, write_boards
from dataset.puzzles.format import open_split

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, value: int = 1, overwrite: bool = False) -> None:
    with dataset_folder(folder, overwrite) as partial:
        for split in ("train", "test"):
            boards = np.full((6, 4), value, dtype=np.uint8)
            write_boards(partial, split, boards, boards, vocab_size=9, group_size=3)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_boards_are_read_back(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b")
    split = open_split(tmp_path / "a" / "b", "train")
    assert (split.metadata.seq_len, split.metadata.vocab_size, split.metadata.num_puzzle_identifiers) == (4, 9, 1)
    assert (split.metadata.total_groups, split.metadata.total_puzzles) == (2, 2)
    assert split.sets["all"].group_indices.tolist() == [0, 3, 6]
    assert split.sets["all"].puzzle_indices.tolist() == list(range(7))
    assert (split.sets["all"].inputs == 1).all()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), dataset_folder(tmp_path / "deep" / "d") as partial:
        create_array(partial, "train", "all", "inputs", (2, 2))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_array_that_was_created_has_its_room_on_the_disk(tmp_path: Path) -> None:
    """So that a disk that fills up later cannot kill the process where it writes into the map."""
    array = create_array(tmp_path, "train", "all", "inputs", (1 << 10, 1 << 10))
    file = tmp_path / "train" / "all__inputs.npy"
    assert file.stat().st_blocks * 512 >= 1 << 20
    array[:] = 7
    array.flush()
    saved = tmp_path / "saved.npy"
    np.save(saved, np.asarray(array))
    assert saved.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("call", ["posix_fallocate", "write"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":  # where the system cannot reserve room
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr("dataset.files.disk.bytes", full, raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"/d: 3.0 MB .*--output-dir"), dataset_folder(tmp_path / "d") as partial:
        create_array(partial, "train", "all", "inputs", (3, 10**6))
    assert os.listdir(tmp_path) == []


def test_room_is_made_where_the_system_cannot_reserve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    array = create_array(tmp_path, "train", "all", "inputs", (3, 10**6))
    assert array.shape == (3, 10**6) and not array.any()
    assert (tmp_path / "train" / "all__inputs.npy").stat().st_blocks * 512 >= 3 * 10**6


def test_arrays_that_do_not_fit_are_refused_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(ValueError, match=r"/d: .*--output-dir"):
        write(tmp_path / "d")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_build_left_is_removed_by_the_next_of_its_target(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from dataset.files.writer import dataset_folder\n"
        "with dataset_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half').write_text('x'); print(partial.name, flush=True); os.kill(os.getpid(), int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script]
    killed = [
        subprocess.run(
            [*command, str(tmp_path / name), str(signal.SIGKILL)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for name in ("d", "other")
    ]
    assert {run.returncode for run in killed} == {-signal.SIGKILL}
    left, others = (run.stdout.strip() for run in killed)
    with subprocess.Popen(
        [*command, str(tmp_path / "d"), str(signal.SIGSTOP)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as alive:
        assert alive.stdout is not None
        living = alive.stdout.readline().strip()
        assert not (tmp_path / left).exists()
        write(tmp_path / "d")
        assert sorted(os.listdir(tmp_path)) == sorted([living, others, "d"])
        alive.kill()


def test_failure_keeps_the_old_data_set(tmp_path: Path) -> None:
    write(tmp_path / "d")
    before = content(tmp_path)
    with pytest.raises(RuntimeError), dataset_folder(tmp_path / "d", overwrite=True) as partial:
        write_boards(partial, "train", np.ones((2, 4)), np.ones((2, 4)), vocab_size=9)
        raise RuntimeError
    assert content(tmp_path) == before


def test_name_is_free_until_the_end(tmp_path: Path) -> None:
    with dataset_folder(tmp_path / "d"):
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d").exists()


def test_same_data_set_again_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "d")
    before = (tmp_path / "d" / "identifiers.json").stat().st_mtime_ns
    write(tmp_path / "d")
    assert (tmp_path / "d" / "identifiers.json").stat().st_mtime_ns == before
    assert os.listdir(tmp_path) == ["d"]


def test_different_data_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "d")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="--overwrite"):
        write(tmp_path / "d", value=2)
    assert content(tmp_path) == before
    write(tmp_path / "d", value=2, overwrite=True)
    assert (open_split(tmp_path / "d", "test").sets["all"].inputs == 2).all()
    assert os.listdir(tmp_path) == ["d"]


def test_folder_with_other_things_is_never_touched(tmp_path: Path) -> None:
    write(tmp_path / "d")
    (tmp_path / "d" / "thesis.tex").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"thesis.tex"):
        write(tmp_path / "d", value=2, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        write(tmp_path / "d" / "thesis.tex")
    assert content(tmp_path) == before


def test_empty_folder_and_link_are_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "identifiers.json").is_file()


def test_array_on_disk_is_the_one_that_is_read(tmp_path: Path) -> None:
    with dataset_folder(tmp_path / "d") as partial:
        inputs = create_array(partial, "train", "all", "inputs", (2, 4))
        inputs[:] = [[1, 2, 3, 4], [5, 6, 7, 8]]
        write_boards(partial, "train", inputs, np.ones((2, 4), dtype=np.uint8), vocab_size=9)
    assert open_split(tmp_path / "d", "train").sets["all"].inputs.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
