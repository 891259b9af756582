"""Clients for the load of a server: many at once, and those that take their time."""

import asyncio
import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

QUESTION = [{"role": "user", "content": "My name is Ada and I have 3 cats."}]
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def request(**asked) -> bytes:
    body = json.dumps({"messages": QUESTION, "temperature": 9, "seed": 1, "stream": True} | asked).encode()
    return f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@dataclass
class Streamed:
    """What one client got."""

    asked_at: float
    status: int = 0
    times: list[float] = field(default_factory=list)  # of each token
    is_whole: bool = False

    @property
    def first(self) -> float:
        return self.times[0] - self.asked_at

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def stream(port: int, **asked) -> Streamed:
    """Ask for an answer, token by token."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = Streamed(time.monotonic())
    writer.write(request(**asked))
    found.status = int((await reader.readline()).split()[1])
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            found.is_whole = True
        elif line.startswith(b"data: {") and b'"delta": {"content"' in line:
            found.times.append(time.monotonic())
    writer.close()
    return found


async def together(port: int, count: int, **asked) -> list[Streamed]:
    return list(await asyncio.gather(*(stream(port, **asked | {"seed": number}) for number in range(count))))


async def drip(port: int, seconds: float, count: int) -> None:
    """Connections that send a byte of a request each second."""
    opened = []
    for _ in range(count):
        opened.append(socket.create_connection(("127.0.0.1", port)))
        opened[-1].setblocking(False)
    until, content = time.monotonic() + seconds, request()
    for byte in content:
        if time.monotonic() > until:
            break
        for connection in opened:
            with suppress(OSError):  # it may be thrown out
                connection.send(bytes([byte]))
        await asyncio.sleep(1)
    for connection in opened:
        connection.close()


async def sip(port: int, seconds: float, count: int) -> None:
    """Clients that ask for long answers and read a byte of them each second."""
    opened = []
    for _ in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request(logprobs=True, top_logprobs=20))
        connection.setblocking(False)
        opened.append(connection)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(1)
        for connection in opened:
            with suppress(OSError):
                connection.recv(1)
    for connection in opened:
        connection.close()
