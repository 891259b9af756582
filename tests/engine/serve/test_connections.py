"""Connections: what hostile, slow and half-closed clients get, byte for byte, and that the others do not notice."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from engine.serve.connections import LINGER_SECONDS, Bounds
from engine.serve.gate import HOST, Gate, RequestError, json_body, refused
from engine.serve.metrics import Metrics
from tests.chat_runs import served

MAY_END = threading.Event()  # for what is asked at /slow
BEING_ANSWERED = threading.Semaphore(0)  # released by every request for /slow
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def pieces():
    for _ in range(1000):
        yield b"x" * 20_000


async def echo(request):
    """Answers with the body of the request."""
    if request.scope["path"] == "/stream":
        return StreamingResponse(pieces())
    if request.scope["path"] == "/slow":
        BEING_ANSWERED.release()
        while not MAY_END.is_set():
            await asyncio.sleep(0.02)
    body = await json_body(request, request.app.state.body_bytes) if request.method == "POST" else b""
    return PlainTextResponse(request.scope["path"].encode() + b" " + body)


@pytest.fixture
def started():
    MAY_END.clear()
    with ExitStack() as running:

        def start(**options):
            bounds = Bounds(**options)
            app = Starlette(
                routes=[Route("/{path:path}", echo, methods=["GET", "POST"])],
                middleware=[Middleware(Gate, paths=[], names=[], api_key=None, metrics=Metrics())],
                exception_handlers={RequestError: refused},
            )
            app.state.body_bytes = bounds.body_bytes
            return running.enter_context(served(app, MAY_END.set, bounds))[1]

        yield start


def connected(port, content=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(content)
    return connection


def rest_of(connection):
    found = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            found += piece
    return found


def exchange(port, content):
    """Everything that comes back until the server ends the connection."""
    with connected(port, content) as connection:
        with suppress(OSError):  # the server has ended it already
            connection.shutdown(socket.SHUT_WR)
        return rest_of(connection)


def get(port, path=b"/health"):
    with connected(port, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as connection:
        return rest_of(connection)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n", 400),
        (POST + b"Content-Length: 18446744073709551616\r\n", 413),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (POST + b"Content-Length: 5, 6\r\n", 400),
        (POST + b"Content-Length: -5\r\n", 400),
        (POST + b"Content-Length: 0x5\r\n", 400),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (POST + b"Transfer-Encoding: gzip\r\n", 400),
        (POST + b"Content-Length : 5\r\n", 400),
        (POST + b"X: a\rContent-Length: 5\r\n", 400),
        (POST + b"X: \x00\r\n", 400),
        (POST + b"Host: other\r\n", 400),
        (POST + b"X: " + b"x" * 400_000 + b"\r\n", 400),
        (POST + b"X: " + b"x" * 40_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n", 400),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(started, head, status):
    found = exchange(started(), head + b"\r\nGET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 %d " % status), found
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in found.lower() or status == 413, "a body that is too large is read for a moment"


def test_the_body_of_a_get_is_not_the_next_request(started):
    hidden = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"GET /first HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    found = exchange(started(), head + hidden + b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert found.count(b"HTTP/1.1 200") == 2 and b"\r\n\r\n/first " in found
    assert b"\r\n\r\n/hidden" not in found and b"\r\n\r\n/second " in found


def test_a_body_in_chunks_is_read_whole(started):
    body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert exchange(started(), POST + b"Transfer-Encoding: chunked\r\n\r\n" + body).endswith(b"hello world")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:80", "LOCALHOST"),
        ("[::1]:8000", "::1"),
        ("evil]", None),
        ("[::1]evil", None),
        ("a@localhost", None),
        ("", None),
    ],
)
def test_a_host_is_a_name_or_nothing(host, name):
    found = HOST.fullmatch(host)
    assert (found and (found[1] or found[2])) == name


def test_a_post_that_is_too_large_is_told_so_even_while_it_is_sent(started):
    port = started(body_bytes=1000)
    for head in (b"Content-Length: 30000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1c9c380\r\n"):
        with connected(port, POST + head) as connection:
            connection.sendall(b"x" * 30_000_000)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 413")
    asked = connected(port, POST + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
    assert asked.recv(65_536).startswith(b"HTTP/1.1 413")
    asked = connected(port, POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert asked.recv(65_536).startswith(b"HTTP/1.1 100")
    asked.sendall(b"ok")
    asked.shutdown(socket.SHUT_WR)
    assert rest_of(asked).endswith(b"ok")


def test_a_half_closed_client_gets_its_answer(started):
    assert exchange(started(), POST + b"Content-Length: 2\r\n\r\nok").endswith(b"ok")


@pytest.mark.parametrize("begun", [b"", POST, POST + b"Content-Length: 100\r\n\r\n"])
def test_a_client_that_drips_is_thrown_out_after_its_time_in_all(started, begun):
    port = started(client_seconds=0.6)
    connection = connected(port, begun)
    began = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - began < 5:
            connection.sendall(b"X" if not begun.endswith(b"\r\n\r\n") else b"x")
            time.sleep(0.05)
    assert 0.5 < time.monotonic() - began < 3


@pytest.mark.parametrize(
    "asked",
    [
        POST + b"Content-Length: 20000000\r\n\r\n" + b"x" * 20_000_000,
        b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["whole", "stream"],
)
def test_a_client_that_takes_nothing_is_thrown_out_after_its_time_in_all(started, asked):
    port = started(client_seconds=0.6, body_bytes=30_000_000)
    connection = connected(port, asked)
    time.sleep(1.5)
    connection.settimeout(5)
    assert len(rest_of(connection)) < 20_000_000


def test_dripping_connections_keep_nobody_out(started):
    port = started(connections=64)
    dripping = [connected(port, POST + b"X-%d: " % number) for number in range(64)]
    for _ in range(3):
        began = time.monotonic()
        assert get(port).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 2
        for connection in dripping[-32:]:  # the newest still have their places
            connection.sendall(b"x")
    assert rest_of(dripping[0]) == b""  # the oldest had to go
    assert threading.active_count() < 100
    for connection in dripping:
        connection.close()


def test_connections_that_are_being_answered_keep_their_places(started):
    port = started(connections=2)
    slow = [connected(port, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(2)]
    assert all(BEING_ANSWERED.acquire(timeout=10) for _ in slow)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as refused:
        found = rest_of(refused)
    assert found.startswith(b"HTTP/1.1 503") and b"Retry-After" in found
    for connection in slow:
        connection.close()


def test_nothing_that_a_client_sends_controls_the_terminal_of_the_log(started, capfd):
    port = started()
    for target in (b"/\x1b[31m", b"/\xc2\x9b31m", b"/\r\nX: \x1b]0;evil\x07"):
        exchange(port, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nUser-Agent: \x1b[2J\r\n\r\n")
    log = capfd.readouterr().err
    assert log.count("\n") >= 3 and all(32 <= ord(letter) < 127 for letter in log.replace("\n", ""))


def test_a_refused_client_that_never_ends_is_left_in_the_end(started):
    connection = connected(started(), b"nonsense\r\n\r\n")
    began = time.monotonic()
    assert connection.recv(12) == b"HTTP/1.1 400"
    with pytest.raises(OSError):
        while time.monotonic() - began < LINGER_SECONDS + 5:
            connection.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - began < LINGER_SECONDS + 3
