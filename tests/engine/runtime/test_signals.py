"""The first signal asks a run to stop, the second ends it, and neither outlives the block."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from engine.runtime.signals import StopSignal

ROOT = Path(__file__).resolve().parents[3]

WAIT_FOR_SIGNALS = """
import sys, time
from engine.runtime.signals import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    time.sleep(30)
"""


def start(program: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_exits_at_once(number, code):
    with start(WAIT_FOR_SIGNALS, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"requested\n", "the first signal must let the step go on"
        process.send_signal(number)
        _, said = process.communicate(timeout=10)

    assert process.returncode == code
    assert f"{number.name}: ".encode() in said


def test_handlers_are_given_back_after_the_block():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert {number: signal.getsignal(number) for number in before} == before
    assert stop.requested, "the answer outlives the block"


def test_other_ranks_stop_without_a_word(capfd):
    with StopSignal(announce=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert capfd.readouterr().err == ""


def test_threads_install_no_handlers():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopSignal() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGTERM) is before])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False, True]


FORKED_WORKER = """
import os, signal, sys, time
from engine.runtime.signals import StopSignal
with StopSignal() as stop:
    worker = os.fork()
    if worker == 0:
        time.sleep(0.2)
        os._exit(0 if not stop.requested else 9)
    time.sleep(0.05)
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGINT)
    print("ctrl-c", os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
    worker = os.fork()
    if worker == 0:
        time.sleep(3)
        os._exit(0)
    time.sleep(0.05)
    os.kill(worker, signal.SIGTERM)
    print("terminated", os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
    print("parent", stop.requested)
"""


def test_forked_workers_leave_ctrl_c_to_their_parent_but_can_be_terminated():
    with start(FORKED_WORKER, stderr=subprocess.PIPE, start_new_session=True) as process:
        printed, said = process.communicate(timeout=20)
    assert printed.decode().split("\n")[:3] == ["ctrl-c 0", "terminated 143", "parent False"]
    assert said == b""


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def is_echoing(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


SILENCE = "import termios; now = termios.tcgetattr(0); now[3] &= ~termios.ECHO; termios.tcsetattr(0, 0, now)"


def test_exit_at_once_restores_the_terminal(terminal):
    def own_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    program = WAIT_FOR_SIGNALS.replace('print("ready"', f'{SILENCE}; print("ready"')
    assert is_echoing(terminal)
    with start(program, stdin=terminal, stderr=subprocess.DEVNULL, preexec_fn=own_terminal) as process:
        assert process.stdout.readline() == b"ready\n"
        assert not is_echoing(terminal)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"requested\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert is_echoing(terminal)


def test_background_job_exits_without_touching_the_terminal(terminal):
    in_background = """
import fcntl, os, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if job := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(job, os.WUNTRACED)[1]) % 256)
os.setpgid(0, 0)
"""
    with start(in_background + WAIT_FOR_SIGNALS.replace('"ready"', "os.getpid()"), stdin=terminal) as shell:
        job = int(shell.stdout.readline())
        os.kill(job, signal.SIGTERM)
        assert shell.stdout.readline() == b"requested\n"
        os.kill(job, signal.SIGTERM)
        try:
            assert shell.wait(timeout=10) == 143
        finally:
            if shell.poll() is None:
                os.kill(job, signal.SIGKILL)
