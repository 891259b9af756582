"""Recorded work is started piece by piece; without a recording it is simply done."""

from contextlib import nullcontext

import pytest
import torch

from engine.runtime.replay import Replayed


@pytest.fixture
def device(monkeypatch):
    """A CUDA that runs what it is given while recording, and says what it was asked for."""
    asked = []

    class Graph:
        def replay(self):
            asked.append(self)

    streams = type("Stream", (), {"wait_stream": lambda self, other: None})
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: streams())
    return asked


def counted(done):
    def work():
        for number in range(3):
            done.append(number)
            yield number

    return work


def test_on_a_cpu_the_work_is_done_each_time():
    done = []
    work = Replayed(counted(done), 3, torch.device("cpu"))
    assert list(work) == list(work) == [0, 1, 2] and done == [0, 1, 2] * 2


def test_each_piece_is_recorded_once_and_launched_when_it_is_asked_for(device):
    done = []
    work = Replayed(counted(done), 3, torch.device("cuda"))
    assert list(work) == [0, 1, 2] and done == [0, 1, 2] * 2, "to warm up, and to be recorded"
    first = next(iter(work))
    assert first == 0 and len(done) == 6
    assert device == [graph for graph, _ in work.pieces] + [work.pieces[0][0]], "what leaves early launches no more"


def test_work_that_cannot_be_recorded_is_done_with_a_notice(device, monkeypatch, capsys):
    def refused(graph, **_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    work = Replayed(counted([]), 3, torch.device("cuda"))
    assert list(work) == list(work) == [0, 1, 2] and device == []
    assert capsys.readouterr().err.count("operation not permitted") == 1
