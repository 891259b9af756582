import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from dataset.text.encoder_pool import EncoderPool, chunked


class Doubler:
    """Returns (process, doubled numbers); refuses 13, and ends its process at a given number."""

    def __init__(self, deadly: int | None = None) -> None:
        self._deadly = deadly

    def __call__(self, chunk: list[int]) -> tuple[int, list[int]]:
        if 13 in chunk:
            raise ValueError("line 13: not a number of luck")
        if self._deadly in chunk:
            os._exit(1)
        return os.getpid(), [2 * number for number in chunk]


class InterruptHandling:
    def __call__(self, chunk: int) -> bool:
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def chunks(count: int) -> list[list[int]]:
    return [[index] for index in range(100, 100 + count)]


@pytest.mark.parametrize(("num_processes", "num_alone"), [(1, 0), (2, 0), (2, 3), (3, 50)])
def test_results_are_in_order_and_the_same_with_any_number_of_processes(num_processes: int, num_alone: int) -> None:
    with EncoderPool(Doubler, num_processes, num_alone) as pool:
        for _ in range(2):  # a pool serves one file after another
            assert [numbers for _, numbers in pool.encode(chunks(20))] == [[2 * n] for (n,) in chunks(20)]


def test_a_small_corpus_starts_no_process() -> None:
    with EncoderPool(Doubler, 2, num_alone=4) as pool:
        assert {process for process, _ in pool.encode(chunks(4))} == {os.getpid()}
        assert {process for process, _ in list(pool.encode(chunks(9)))[4:]} != {os.getpid()}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_error_is_raised_where_its_result_would_be(num_processes: int) -> None:
    found = []
    with EncoderPool(Doubler, num_processes) as pool, pytest.raises(ValueError, match="line 13"):
        found += [numbers for _, numbers in pool.encode([[11], [12], [13], [14]])]
    with EncoderPool(Doubler, num_processes) as pool:
        results = pool.encode([[11], [12], [13], [14]])
        assert [next(results)[1], next(results)[1]] == [[22], [24]]


def test_a_process_that_dies_is_told() -> None:
    with EncoderPool(partial(Doubler, 7), 2) as pool, pytest.raises(ValueError, match="--num-workers"):
        list(pool.encode([[6], [7], [8]]))


def test_processes_leave_an_interrupt_to_the_one_that_reads() -> None:
    with EncoderPool(InterruptHandling, 2) as pool:
        assert list(pool.encode([1, 2])) == [True, True]


def test_few_chunks_are_read_ahead() -> None:
    taken = 0

    def counted() -> Iterator[list[int]]:
        nonlocal taken
        for chunk in chunks(100):
            taken += 1
            yield chunk

    with EncoderPool(Doubler, 2) as pool:
        next(pool.encode(counted()))
        assert taken <= 6


def test_chunks_reach_their_size() -> None:
    assert list(chunked([3, 3, 5, 9, 1], lambda number: number, 6)) == [[3, 3], [5, 9], [1]]
    assert list(chunked([], lambda number: number, 6)) == []
