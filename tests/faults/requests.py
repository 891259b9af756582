"""Malformed requests to the server: each is refused as HTTP does it, and the server answers the next one."""

import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.programs import Programs
from tests.faults.scenarios import CHAT_RUN
from tests.faults.verdicts import CRASH, Case, Problem, Problems
from tests.recorded.world import DOORS, environment

PATH = "/v1/chat/completions"
PATIENCE = 30.0  # seconds for an answer on a machine with others on it
MESSAGES = [{"role": "user", "content": "Hello"}]
JSON_TYPE = "Content-Type: application/json"
BODIES: dict[str, Any] = {
    **{
        "empty": b"",
        "cut": b'{"messages": [',
        "noise": bytes(range(256)),
        "null": b"null",
        "list": b"[]",
        "text": b'"x"',
    },
    **{"nested": b"[" * 100_000, "long-number": b'{"seed": ' + b"9" * 6000 + b"}", "nan": b'{"temperature": NaN}'},
    **{"surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "no-messages": {}},
    **{"messages-text": {"messages": "x"}, "messages-empty": {"messages": []}, "message-null": {"messages": [None]}},
    **{"role": {"messages": [{"role": "robot", "content": "x"}]}, "content-null": {"messages": [{"role": "user"}]}},
    "content-number": {"messages": [{"role": "user", "content": 5}]},
    "many-messages": {"messages": MESSAGES * 5000},
    "long-message": {"messages": [{"role": "user", "content": "word " * 5000}]},
    "part": {"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
    "last-assistant": {"messages": [{"role": "assistant", "content": "x"}]},
}
VALUES: dict[str, tuple[Any, ...]] = {
    **{
        "temperature": (-1, 1e300, "hot"),
        "top_p": (0, 2),
        "max_tokens": (0, -5, 1.5),
        "n": (2, "x"),
        "seed": (-1, 1 << 90),
    },
    **{
        "stop": ("", ["x"] * 99, 5),
        "depth": (0, 257, 1 << 40),
        "top_logprobs": (99,),
        "model": ("another",),
        "stream": ("x",),
    },
    **{"repetition_penalty": (0, -1), "min_p": (0,), "top_k": (0,), "colour": (1,), "presence_penalty": (1,)},
}


def post(body: bytes, *headers: str, length: str | None = None) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", *(headers or (JSON_TYPE,))]
    lines += [f"Content-Length: {len(body) if length is None else length}"] if length != "" else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GOOD = json.dumps({"messages": MESSAGES, "max_tokens": 2}).encode()
RAW: dict[str, bytes] = {
    "length-digits": post(GOOD, length="9" * 5000),
    "length-negative": post(GOOD, length="-5"),
    "length-text": post(GOOD, length="many"),
    "length-too-large": post(GOOD, length=str(1 << 40)),
    "length-twice": post(GOOD, JSON_TYPE, "Content-Length: 3"),
    "length-and-chunked": post(GOOD, JSON_TYPE, "Transfer-Encoding: chunked"),
    "chunked": post(b"5\r\nhello\r\n0\r\n\r\n", JSON_TYPE, "Transfer-Encoding: chunked", length=""),
    "no-length": post(b"", JSON_TYPE, length=""),
    "no-type": post(GOOD, "X-Nothing: 1"),
    "form": post(b"messages=x", "Content-Type: application/x-www-form-urlencoded"),
    "host-foreign": post(GOOD).replace(b"Host: 127.0.0.1", b"Host: evil.example"),
    "host-bracket": post(GOOD).replace(b"Host: 127.0.0.1", b"Host: evil]"),
    "host-none": post(GOOD).replace(b"Host: 127.0.0.1\r\n", b""),
    "get-with-body": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 42\r\n\r\n"
    + b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no-version": b"POST /\r\n\r\n",  # HTTP/0.9, whose answers have no status line
    "version": b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "method": b"BREW /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "path-long": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "path-escape": b"GET /\x1b[31m HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "path-up": b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "header-long": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "headers-many": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: 1\r\n" * 300 + b"\r\n",
    "noise": bytes(range(256)) + b"\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
TAKEN = {"get-with-body", "version", "headers-many"}  # may be answered: the body belongs to the first request


def serve(world: Programs) -> tuple[int, Path]:
    """The port and the log of one server for all cases; the first to ask starts it."""
    folder = world.place / "server"
    if not folder.exists():
        folder.mkdir()
        words = [
            sys.executable,
            str(world.root / DOORS["serve"][0]),
            "--checkpoint",
            str(CHAT_RUN.reference(world) / "run"),
        ]
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            command = [*words, "--port", "0", "--device", "cpu", "--max-new-tokens", "4"]
            process = subprocess.Popen(command, cwd=world.root, env=environment(), stdout=out, stderr=err)
        (folder / "process").write_text(str(process.pid))
        deadline = time.monotonic() + 120
        while not (folder / "out").read_text().endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start: {(folder / 'err').read_text()[-300:]}")
            time.sleep(0.1)
    return int((folder / "out").read_text().rsplit(":", 1)[1]), folder / "err"


def ask(port: int, request: bytes, is_closed: bool = False) -> bytes:
    """Everything that comes back until the server closes, or says nothing for a while."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(request)
            if is_closed:
                connection.shutdown(socket.SHUT_WR)
            while select.select([connection], [], [], PATIENCE if not answer else 0.3)[0]:
                part = connection.recv(1 << 16)
                if not part:
                    break
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            return answer or b"(closed)"
    return answer


def try_request(request: bytes, name: str, world: Programs, folder: Path, draw: random.Random) -> tuple[Problems, str]:
    port, log = serve(world)
    before = log.stat().st_size
    answer = ask(port, request)
    problems: Problems = []
    statuses = re.findall(rb"HTTP/1\.[01] (\d{3})", answer) or re.findall(rb"Error code: (\d{3})", answer)
    wanted = rb"4\d\d|501|505" + (rb"|200" if name in TAKEN else b"")
    if not statuses or not re.fullmatch(wanted, statuses[0]) or len(statuses) > 1:
        problems.append(Problem("no remedy", f"answered {[s.decode() for s in statuses]}: {answer[:120]!r}"))
    said = log.read_bytes()[before:]
    if CRASH.encode() in said:
        problems.append(Problem("traceback", said.decode(errors="replace").strip().splitlines()[-1][:200]))
    if re.search(rb"[\x00-\x08\x0b-\x1f]", said):
        problems.append(Problem("no remedy", f"control characters in the log: {said[-120:]!r}"))
    health = ask(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    if b" 200 " not in health:
        problems.append(Problem("no remedy", f"/health then answers {health[:80]!r}"))
    return problems, ""


def requests() -> dict[str, bytes]:
    found = {f"body-{name}": post(b if isinstance(b, bytes) else json.dumps(b).encode()) for name, b in BODIES.items()}
    for key, values in VALUES.items():
        for number, value in enumerate(values):
            found[f"value-{key}-{number}"] = post(
                json.dumps({"messages": MESSAGES, "max_tokens": 2, key: value}).encode()
            )
    return found | RAW


def cases() -> list[Case]:
    return [
        Case("input", f"input/request/{name}", partial(try_request, request, name))
        for name, request in requests().items()
    ]


def prepare(world: Programs, names: list[str]) -> None:
    if any(name.startswith("input/request/") for name in names):
        serve(world)


def close(world: Programs) -> None:
    """End the server."""
    folder = world.place / "server"
    if (folder / "process").exists():
        os.kill(int((folder / "process").read_text()), signal.SIGKILL)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
