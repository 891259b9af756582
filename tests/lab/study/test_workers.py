import operator
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from lab.study.workers import Workers


def ended(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_calls_run_at_the_same_time_and_bring_their_results(tmp_path):
    with Workers(2, tmp_path / "log") as workers:
        workers.start("a", operator.add, 1, 2)
        workers.start("b", operator.add, 3, 4)
        assert workers.num_free == 0 and workers.busy == {"a", "b"}
        found = {}
        while workers.busy:
            found |= {key: call.result() for key, call in workers.finished()}
    assert found == {"a": 3, "b": 7}


def test_a_process_that_dies_costs_its_own_call_only(tmp_path):
    with Workers(2, tmp_path / "log") as workers:
        workers.start("dies", os._exit, 1)
        workers.start("lives", operator.add, 1, 2)
        found = {}
        while workers.busy:
            found |= dict(workers.finished())
        with pytest.raises(BrokenProcessPool):
            found["dies"].result()
        assert found["lives"].result() == 3
        workers.start("next", operator.add, 2, 2)
        assert [call.result() for _, call in workers.finished()] == [4]


def test_an_error_is_raised_where_its_result_is_read(tmp_path):
    with Workers(1, tmp_path / "log") as workers:
        workers.start("wrong", int, "no number")
        ((_, call),) = workers.finished()
        with pytest.raises(ValueError, match="no number"):
            call.result()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_ends_what_is_running(tmp_path, error):
    with pytest.raises(error), Workers(1, tmp_path / "log") as workers:
        workers.start("sleeps", time.sleep, 60)
        ((_, worker),) = workers._calls.values()
        raise error
    assert ended(worker.pid)


def test_sigterm_leaves_with_its_exit_code(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, Workers(1, tmp_path / "log") as workers:
        workers.start("sleeps", time.sleep, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_does_not_end_a_process(tmp_path):
    with Workers(1, tmp_path / "log") as workers:
        workers.start("sleeps", time.sleep, 0.5)
        ((_, worker),) = workers._calls.values()
        os.kill(worker.pid, signal.SIGINT)
        assert [call.result() for _, call in workers.finished()] == [None]


def test_what_a_call_prints_goes_into_the_log(tmp_path, capfd):
    with Workers(1, tmp_path / "log") as workers:
        workers.start("prints", os.system, "echo spoken; echo to the error stream >&2")
        list(workers.finished())
    assert (tmp_path / "log").read_text() == "spoken\nto the error stream\n" and capfd.readouterr().out == ""
