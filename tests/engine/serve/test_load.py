"""Many clients at once: all are answered, soon, and by whoever is slow or hostile the others are not held up."""

import asyncio
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.chat_runs import chat_flags, write_chat_data
from tests.engine.serve.load import drip, sip, stream, together
from tests.tiny import ROOT, end, first_line, pretrain, start

MODEL = {"hidden_size": 128, "num_heads": 4, "L_layers": 2, "halt_max_steps": 4}  # a token takes 4 ms of a core


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    data = write_chat_data(folder / "data")
    ended = pretrain(chat_flags(data, folder / "run", MODEL, epochs=1, eval_interval=1, ema=False))
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def port(checkpoint):
    """Of a server in a process of its own."""
    with served(checkpoint) as (found, _):
        yield found


@contextmanager
def served(checkpoint):
    process = start(["--checkpoint", str(checkpoint), "--port", "0", "--device", "cpu"], ROOT, door="serve.py")
    try:
        found = int(first_line(process).rsplit(":", 1)[1])
        asyncio.run(together(found, 2, max_tokens=4))
        yield found, process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        end(process)


def speed(found, started):
    return sum(len(one.times) for one in found) / (time.monotonic() - started)


async def one_by_one(port, count, **asked):
    return [await stream(port, seed=number, **asked) for number in range(count)]


def compared(port, one, many):
    """Tokens a second: one stream after the other, and sixteen at once."""
    began = time.monotonic()
    alone = speed(asyncio.run(one_by_one(port, one, max_tokens=60)), began)
    began = time.monotonic()
    at_once = asyncio.run(together(port, many, max_tokens=60))
    return alone, speed(at_once, began), at_once


def test_sixteen_clients_are_answered_at_once(port):
    alone, at_once, found = compared(port, 3, 16)
    assert all(one.status == 200 and one.is_whole for one in found)
    assert at_once > 1.5 * alone  # 6 times on a machine with nothing else to do


@pytest.mark.slow
def test_sixteen_streams_are_three_times_as_fast_as_one_after_the_other(port):
    rounds = [compared(port, 8, 16)[:2] for _ in range(5)]
    print("tokens a second, alone and of 16:", [(round(alone), round(at_once)) for alone, at_once in rounds])
    assert median(at_once / alone for alone, at_once in rounds) >= 3


@pytest.mark.slow
def test_of_sixty_four_clients_at_once_none_is_refused(port):
    found = asyncio.run(together(port, 64, max_tokens=60))
    print("seconds to the first token:", sorted(round(one.first, 2) for one in found)[::9])
    assert all(one.status == 200 and one.is_whole for one in found)


async def newcomers(port):
    """Seconds to the first token of a new request while fifteen run, in token times of those."""
    found = []
    for number in range(8):
        others = asyncio.create_task(together(port, 15, max_tokens=68))
        await asyncio.sleep(0.3)
        new = await stream(port, max_tokens=2, seed=100 + number)
        token_time = median(gap for one in await others for gap in one.gaps)
        found.append(new.first / token_time)
    return found


@pytest.mark.slow
def test_a_newcomer_waits_three_token_times_at_most(port):
    found = asyncio.run(newcomers(port))
    print("token times to the first token:", [round(one, 1) for one in found])
    assert median(found) <= 3


async def token_time(port, *others):
    """Of four streams after each other, while the others do what they do."""
    running = [asyncio.create_task(other) for other in others]
    await asyncio.sleep(1.5 if others else 0)
    gaps = []
    for _ in range(4):
        gaps += [gap for one in await together(port, 4, max_tokens=68) for gap in one.gaps]
    for task in running:
        await task
    return median(gaps)


async def beyond_the_limit(port, seconds):
    """Asks for a depth that is refused, again and again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert (await stream(port, depth=4000)).status == 400
        await asyncio.sleep(0.2)


async def held_up(port):
    """Token times beside slow and hostile clients, by those without them just before."""
    found = []
    for _ in range(5):
        calm = await token_time(port)
        hostile = await token_time(port, sip(port, 6, 4), drip(port, 6, 64), beyond_the_limit(port, 6))
        found.append(hostile / calm)
    return found


@pytest.mark.slow
def test_slow_and_hostile_clients_hold_nobody_up(port):
    found = asyncio.run(held_up(port))
    print("token times beside them, by those without:", [round(one, 3) for one in found])
    assert median(found) < 1.1


def resident(pid):
    """Bytes of memory that the process has."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_two_thousand_requests(checkpoint):
    with served(checkpoint) as (port, pid):
        sizes = []
        for _ in range(5):
            for _ in range(20):
                found = asyncio.run(together(port, 20, max_tokens=4))
                assert all(one.status == 200 and one.is_whole for one in found)
            sizes.append(resident(pid))
    print("MB after each 400 requests:", [round(size / 1e6, 1) for size in sizes])
    assert sizes[-1] < 1.02 * sizes[0]
