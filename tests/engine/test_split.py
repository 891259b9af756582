"""How a global batch is split, over ranks or over micro-batches, changes nothing but rounding."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.tiny import (
    TORCHRUN,
    assert_same_end,
    end,
    flags,
    halting_weights,
    logged,
    pretrain,
    start,
    steps_on_disk,
    wait_for,
    write_sudoku,
)

ARCH = {"puzzle_emb_ndim": 32, "halt_exploration_prob": 0.5}
OPTIONS = {"arch": ARCH, "ema": True, "max_steps": 5, "checkpoint_interval": 3, "epochs": 3, "eval_interval": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, one micro-batch; rows want to halt, so that exploration decides how long they run."""
    folder = tmp_path_factory.mktemp("split")
    data = write_sudoku(folder / "data", identifiers=6)
    weights = halting_weights(folder / "start.pt", data, ARCH)
    command = flags(data, folder / "whole", load_checkpoint=str(weights), **OPTIONS)
    assert pretrain(command).code == 0
    finished = [line for line in logged(folder / "whole") if line.get("train/count")]
    assert len(finished) >= 4 and any(line["train/count"] < 8 for line in finished), "rows must differ in their steps"
    return folder


def assert_equal_but_for_rounding(folder, name: str) -> None:
    assert_same_end(folder / "whole", folder / name, atol=1e-6)
    ours, theirs = logged(folder / "whole"), logged(folder / name)
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def command(folder, name: str, **changes):
    return flags(folder / "data", folder / name, load_checkpoint=str(folder / "start.pt"), **(OPTIONS | changes))


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradients_equal_one_pass(whole, parts):
    name = f"parts{parts}"
    assert pretrain(command(whole, name, gradient_accumulation_steps=parts)).code == 0
    assert_equal_but_for_rounding(whole, name)


def test_two_ranks_equal_one_process_and_can_be_continued_by_one(whole):
    words = command(whole, "ranks")
    ended = end(start(words, whole, *TORCHRUN))
    assert ended.code == 0, ended.err
    assert_equal_but_for_rounding(whole, "ranks")
    assert ended.report["all"] == pytest.approx(pretrain(evaluate_words(whole)).report["all"], rel=1e-5, abs=1e-6)

    assert steps_on_disk(whole / "ranks") == [3, 5]
    shutil.rmtree(whole / "ranks" / "step_5")
    assert pretrain([*words, "resume=true"]).code == 0
    assert_equal_but_for_rounding(whole, "ranks")


@pytest.mark.slow
def test_several_chains_are_split_like_one(tmp_path):
    data = write_sudoku(tmp_path / "data", identifiers=6)
    options = OPTIONS | {"arch": ARCH | {"chains": 3}}
    for name, parts in (("whole", 1), ("parts", 2)):
        assert pretrain(flags(data, tmp_path / name, gradient_accumulation_steps=parts, **options)).code == 0
    words = flags(data, tmp_path / "ranks", **options)
    ended = end(start(words, tmp_path, *TORCHRUN))
    assert ended.code == 0, ended.err
    for name in ("parts", "ranks"):
        assert_equal_but_for_rounding(tmp_path, name)
    shutil.rmtree(tmp_path / "ranks" / "step_5")
    assert pretrain([*words, "resume=true"]).code == 0
    assert_equal_but_for_rounding(tmp_path, "ranks")


def evaluate_words(folder):
    words = [word for word in command(folder, "unused") if not word.startswith("load_checkpoint=")]
    return [*words, "eval_only=true", f"load_checkpoint={folder / 'whole'}"]


def last_line(err: str) -> str:
    """torchrun frames what it repeats."""
    return [line for line in err.splitlines() if line.strip(" =")][-1]


@pytest.mark.parametrize("is_alone", [False, True])
def test_what_ends_one_of_two_ranks_or_both_is_said_last(whole, tmp_path, is_alone):
    """A directory that is in use is refused by the first rank alone, while the other waits for it."""
    words = command(whole, "whole" if is_alone else "new", **({} if is_alone else {"max_steps": -1}))
    ended = end(start(words, tmp_path, *TORCHRUN))
    assert ended.code == 1 and ended.out == ""
    wanted = f"error: {whole / 'whole'}" if is_alone else "max_steps"
    assert wanted in last_line(ended.err), ended.err
    assert ended.err.count("Traceback") <= 1, "torchrun has one of its own"


def process_of_rank(parent: int, rank: int) -> int:
    """The child that torchrun started as this rank."""
    for found in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            is_child = int(found.read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and f"RANK={rank}".encode() in found.with_name("environ").read_bytes().split(b"\0"):
                return int(found.parent.name)
    raise AssertionError("no such rank")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the rank")
def test_a_signal_to_one_of_two_ranks_saves_and_the_last_line_says_how_to_resume(whole):
    words = command(whole, "signalled", max_steps=3000, epochs=3000, eval_interval=3000, checkpoint_interval=1)
    process = start(words, whole, *TORCHRUN)
    wait_for(lambda: (whole / "signalled" / "latest").exists())
    os.kill(process_of_rank(process.pid, 1), signal.SIGTERM)
    ended = end(process)
    step = steps_on_disk(whole / "signalled")[-1]
    assert f"stopped after step {step}; resume with" in last_line(ended.err), ended.err
    assert logged(whole / "signalled")[-1]["step"] == step
