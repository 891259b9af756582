"""Ranks of every kind of run wait for each other for as long as `collective_timeout` says."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import torch

from engine.build.jobs import InstructJob, PuzzleJob
from engine.config.check import check
from engine.config.compose import composed
from engine.config.flags import FlagParser
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig
from engine.train.job import Job
from engine.train.opening import open_run
from src.distillation.config import DistillConfig
from src.distillation.run.job import DistillJob
from src.distillation.tuning.config import TeacherFtConfig
from src.distillation.tuning.job import TuneTeacherJob


def puzzles(minutes: str) -> Job:
    return PuzzleJob(check(PretrainConfig, composed("cfg_pretrain", [f"collective_timeout={minutes}", "device=cpu"])))


def instructions(minutes: str) -> Job:
    words = [f"collective_timeout={minutes}", "device=cpu"]
    return InstructJob(check(InstructConfig, composed("cfg_pretrain_instruct", words)))


def distillation(minutes: str) -> Job:
    words = ["--collective-timeout", minutes, "--device", "cpu"]
    return DistillJob(FlagParser(DistillConfig, "").read(words)[0])


def tuning(minutes: str) -> Job:
    words = ["--collective-timeout", minutes, "--device", "cpu"]
    return TuneTeacherJob(FlagParser(TeacherFtConfig, "").read(words)[0])


class MetError(Exception):
    """The ranks would meet now."""


@pytest.mark.parametrize("make", [puzzles, instructions, distillation, tuning])
def test_ranks_wait_for_each_other_as_long_as_asked(
    make: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[timedelta] = []

    def meet(timeout: timedelta, **_: Any) -> None:
        asked.append(timeout)
        raise MetError

    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(MetError), ExitStack() as stack:
        open_run(make("7"), stack)
    assert asked == [timedelta(minutes=7)]
