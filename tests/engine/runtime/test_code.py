"""The version of the code: a commit and whether files differ from it, nothing where git cannot say."""

import os
import subprocess

from engine.runtime.code import code_version

NOTHING = {"commit": None, "commit_is_dirty": None}


def git(root, *words: str) -> str:
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", root, *words], env=os.environ | identity, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_and_changes_are_found(tmp_path):
    git(tmp_path, "init", "-q")
    assert code_version(tmp_path) == NOTHING, "no commit yet"
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "untracked").write_text("data")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version(tmp_path) == {"commit": commit, "commit_is_dirty": False}
    (tmp_path / "file").write_text("two")
    assert code_version(tmp_path) == {"commit": commit, "commit_is_dirty": True}


def test_without_git_nothing_is_known(tmp_path, monkeypatch):
    inside = tmp_path / "copied"
    inside.mkdir()
    git(tmp_path, "init", "-q")
    assert code_version(inside) == NOTHING, "the repository around it is another one"
    monkeypatch.setenv("PATH", "")
    assert code_version() == NOTHING
