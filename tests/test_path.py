"""The way from the entry point to the recursion is short enough to be read in one sitting."""

import traceback
from pathlib import Path
from typing import Any

import pytest

from models.recursive_reasoning.trm import TinyRecursiveCore
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import ROOT

MOST_FRAMES, MOST_FILES = 11, 8
LOWER_HALF = ["train_step", "train_on", "unroll", "step", "recurse"]  # from the task down


class ReachedError(BaseException):
    """Ends the run where the recursion begins."""


def test_training_reaches_the_recursion_in_few_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack: list[traceback.FrameSummary] = []

    count_calls = TinyRecursiveCore.recurse

    def recurse(*args: Any) -> Any:
        found = traceback.extract_stack()[:-1]
        if found[-1].name == "passes_of_step":  # asks how many calls a step makes, and computes nothing
            return count_calls(*args)
        stack.extend(found)
        raise ReachedError

    monkeypatch.setattr(TinyRecursiveCore, "recurse", recurse)
    with pytest.raises(ReachedError):
        train_text(text_flags(write_corpus(tmp_path / "data", 12), tmp_path / "run"))

    ours = [frame for frame in stack if ROOT in Path(frame.filename).parents]
    not_product = {"tests", "site-packages"}  # an environment may lie in the repository
    frames = [frame for frame in ours if not not_product & {*Path(frame.filename).relative_to(ROOT).parts}]
    way = [f"{Path(frame.filename).relative_to(ROOT)}:{frame.name}" for frame in frames]
    way.append("models/recursive_reasoning/trm.py:recurse")
    told = "\n".join(way)
    assert way[0] == "pretrain_instruct.py:<module>", told
    assert [name.rpartition(":")[2] for name in way[-len(LOWER_HALF) :]] == LOWER_HALF, told
    assert way[-len(LOWER_HALF)].startswith("engine/tasks/text.py"), told
    files = {name.partition(":")[0] for name in way}
    assert len(way) <= MOST_FRAMES and len(files) <= MOST_FILES, f"{len(way)} frames, {len(files)} files\n{told}"
