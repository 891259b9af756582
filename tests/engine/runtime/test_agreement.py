"""Ranks that differ in options, data or weights are found and named: in one process, and two of a run."""

import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.runtime.agreement import check_facts, check_weights, far_ranks, odd_ones
from engine.runtime.devices import Runtime
from tests.text_runs import text_flags, write_corpus
from tests.tiny import CPU, ROOT, Ended, end, start, start_python

MOVED = """
import os, runpy, sys
sys.path.insert(0, {root!r})
import torch
import engine.train.loop as loop
honest = loop.train_step
def moved(run, *given):
    honest(run, *given)
    if run.state.step == 3 and os.environ["RANK"] == "1":
        with torch.no_grad():
            [*run.task.module.parameters()][0][0] += 1
loop.train_step = moved
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""


class Among(Runtime):
    """Rank 0 of several, of which the others have what was said before."""

    said: list[Tensor]

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, self.said.pop(0)])


def among(*said: Tensor, world_size: int = 2) -> Among:
    runtime = Among(CPU.device, 0, world_size, False)
    object.__setattr__(runtime, "said", list(said))
    return runtime


def of_text(text: str, size: int) -> tuple[Tensor, Tensor]:
    letters = torch.zeros(1, size, dtype=torch.uint8)
    letters[0, : len(text)] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return torch.tensor([len(text)]), letters


def test_a_fact_that_differs_is_named_with_the_rank_and_places_may_differ() -> None:
    facts = {"lr": 0.1, "arch": {"norm": "pre"}, "data_dir": "/a"}
    own = len('{"lr": 0.1, "arch.norm": "pre"}')
    check_facts(facts, among(*of_text('{"lr": 0.1, "arch.norm": "pre"}', own)))
    other = '{"lr": 0.1, "arch.norm": "post", "more": 1}'
    with pytest.raises(
        ValueError, match=r"arch\.norm=post on rank 1 instead of pre; more=1 on rank 1 instead of nothing"
    ):
        check_facts(facts, among(*of_text(other, len(other))))
    check_facts(facts, CPU)


def test_most_ranks_are_right_and_of_two_the_first() -> None:
    assert odd_ones("lr", ["1", "1"]) is None
    assert odd_ones("lr", ["1", "2"]) == "lr=2 on rank 1 instead of 1"
    assert odd_ones("lr", ["1", "2", "2", "3"]) == "lr=1 on rank 0, lr=3 on rank 3 instead of 2"
    assert odd_ones("lr", ["1"] * 10 + ["2"] * 9) == "lr=2 on ranks 10, 11, 12, 13, 14 and 4 more instead of 1"
    near, nan = torch.tensor([1.0, 1.0001, 2.0, math.nan]), torch.tensor(0.01)
    assert far_ranks(near, nan) == [2, 3]
    assert far_ranks(torch.tensor([1.0, 2.0]), nan) == [1]


def test_weights_that_are_apart_by_more_than_rounding_are_named() -> None:
    module = nn.Linear(40, 30)

    def sums(scale: float, shift: float = 0.0) -> Tensor:
        return torch.stack([torch.stack([p.sum() * scale + shift, p.norm()]) for p in module.parameters()]).detach()[
            None
        ]

    check_weights(module, among(sums(1 + 1e-6)), "at step 5")
    with pytest.raises(ValueError, match="rank 1.*step 5.*weight"):
        check_weights(module, among(sums(1, shift=0.1)), "at step 5")
    with pytest.raises(ValueError, match="rank 1"):
        check_weights(module, among(sums(math.nan)), "at step 5")
    check_weights(module, CPU, "at step 5")
    check_weights(module.requires_grad_(False), among(), "at step 5")  # nothing is trained


def run_both(tmp_path: Path, first: list[str], second: list[str], program: str = "") -> list[Ended]:
    """Two ranks, each on a machine of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank, words in enumerate((first, second)):
        environment: dict[str, Any] = meeting | {"RANK": str(rank), "LOCAL_RANK": "0"}
        if program:
            started.append(start_python(["-c", program, *words], tmp_path, **environment))
        else:
            started.append(start(words, tmp_path, door="pretrain_instruct.py", **environment))
    return [end(process) for process in started]


def test_two_ranks_with_different_options_or_data_do_not_train(tmp_path: Path) -> None:
    data, other = write_corpus(tmp_path / "data"), write_corpus(tmp_path / "other", count=61)
    words = text_flags(data, tmp_path / "run")
    for second, named in (
        (text_flags(data, tmp_path / "run", lr=0.5), "lr=0.5"),
        (text_flags(other, tmp_path / "run"), "data="),
    ):
        for ended in run_both(tmp_path, words, second):
            assert ended.code == 1 and named in ended.err and "on rank 1 instead of" in ended.err
    assert not list(tmp_path.glob("run/step_*"))


def test_a_rank_whose_weights_move_otherwise_is_named_before_anything_is_saved(tmp_path: Path) -> None:
    words = text_flags(write_corpus(tmp_path / "data"), tmp_path / "run", checkpoint_interval=2)
    program = MOVED.format(root=str(ROOT), program=str(ROOT / "pretrain_instruct.py"))
    for ended in run_both(tmp_path, words, words, program):
        assert ended.code == 1 and "rank 1" in ended.err and "step 4" in ended.err, ended.err
    assert [path.name for path in tmp_path.glob("run/step_*")] == ["step_2"]
