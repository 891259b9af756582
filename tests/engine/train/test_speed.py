"""Tokens a second and the share of the machine's matrix products: counted where something is trained, over all ranks."""

import json
import re
from dataclasses import replace

import pytest
import torch

from engine.tasks.protocol import Task
from engine.train import speed
from engine.train.speed import Speedometer, expectation, matmul_rate
from tests.tiny import CPU, flags, pretrain, write_sudoku

PACKED = {"inputs": torch.zeros(2, 4), "documents": torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1]])}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that can be set; a product takes one of them for every teraflop."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(speed, "matmul_rate", lambda runtime, dtype: 1e12)
    return now


def test_a_reading_counts_what_holds_something_and_starts_again(clock):
    meter = Speedometer(replace(CPU, world_size=2))
    meter.add(PACKED, 3e12, torch.bfloat16)
    meter.add({"inputs": torch.zeros(2, 4)}, 1e12, torch.bfloat16)
    clock[0] = 8.0
    assert meter.read() == {"perf/tokens_per_second": 2 * (4 + 8) / 8, "perf/matmul_share": 0.5}
    clock[0] = 9.0
    assert meter.read() == {}, "nothing was trained since"


def test_time_that_went_elsewhere_does_not_count(clock):
    meter = Speedometer(CPU)
    clock[0] = 100.0
    meter.restart()
    meter.add(PACKED, 0.0, torch.float32)
    clock[0] = 101.0
    assert meter.read() == {"perf/tokens_per_second": 4.0}, "operations are not known"


class Work(Task):
    """Steps of so many operations each, of as many supervision steps as their number."""

    def __init__(self, flops: float, micro_batches: int) -> None:
        self.work, self.micro_batches = flops, micro_batches

    def start_step(self, step):
        self.num_steps = step
        return step

    def flops(self, item):
        return self.num_steps * self.work


@pytest.mark.parametrize(
    ("flops", "device", "told"),
    [
        (1e12, "cpu", "2 x 4 tokens, at least 3 s"),
        (9e12, "cpu", "at least 27 s.*arch=trm_tiny"),
        (9e12, "cuda", "at least 27 s by"),
        (0.0, "cpu", "2 x 4 tokens$"),
    ],
)
def test_the_first_step_is_announced_with_its_size_and_its_seconds(clock, flops, device, told):
    runtime = replace(CPU, device=torch.device(device))
    said = expectation(Work(flops, micro_batches=2), ("all", PACKED, 2), 3, runtime, "arch=trm_tiny")
    assert re.search(told, said) and ("trm_tiny" in said) == ("trm_tiny" in told)


def test_the_machine_is_measured():
    assert 1e8 < matmul_rate(CPU, torch.float32) < 1e14


def test_a_run_logs_its_speed_with_every_look_at_the_metrics(tmp_path):
    data = write_sudoku(tmp_path / "data")
    ended = pretrain(flags(data, tmp_path / "run", log_interval=4, gradient_accumulation_steps=2))
    assert ended.code == 0, ended.err
    written = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = {line["step"]: line for line in written if "train/lr" in line}
    found = [step for step, line in lines.items() if "perf/tokens_per_second" in line]
    assert found == [step for step in lines if step % 4 == 0 or step % 9 == 0]
    assert all(0 < lines[step]["perf/matmul_share"] < 1.5 for step in found)
    assert all(lines[step]["perf/passes"] == 2 for step in found)
    assert "tokens/s" in ended.err and "of matmul" in ended.err
