"""The lock of a directory: one holder at a time, given back at the end and after a failure."""

from pathlib import Path

import pytest

from dataset.files.locks import exclusive_lock


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
