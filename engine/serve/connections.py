"""Connections of the server: uvicorn's, under a deadline for what clients send and take, and bounded in number."""

import asyncio
from dataclasses import dataclass
from typing import Any
from weakref import proxy

from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.serve.gate import log

LINGER_SECONDS = 2.0  # to read what a refused client still sends: closing at once would cost it the refusal
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Bounds:
    """What clients may take; what exceeds it is refused."""

    body_bytes: int = 1_000_000
    connections: int = 512  # a further one takes the place of the one that has been sending its request for longest
    client_seconds: float = 30.0  # in all, for a client to send a request, and again to take its answer
    answer_seconds: float = 600.0  # in all, for an answer and its wait in the queue


class Connection(H11Protocol):
    """One client, whose requests are answered one after the other.

    `reading` is shared by all: the connections that wait for their clients, the longest first.
    """

    def __init__(self, bounds: Bounds, reading: "dict[Connection, None]", **given: Any) -> None:
        super().__init__(**given)
        self.bounds, self.reading = bounds, reading
        self.app_state = {**self.app_state, "connection": proxy(self)}  # what a request finds in its scope
        self.has_ended_its_side = False  # nothing more comes from the client, which has vanished or still listens
        self.must_send: asyncio.TimerHandle | None = None
        self.must_take: asyncio.TimerHandle | None = None
        self.patience, self.paused_at = bounds.client_seconds, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            oldest = next(iter(self.reading), None)
            if oldest is None:
                transport.write(FULL)
                transport.close()
                return
            oldest.abort()
        self._reads(self.bounds.client_seconds)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._whole_request_comes()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client may still listen: an answer that is being given goes on."""
        self.has_ended_its_side = True
        return self.is_answering

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reads_no_longer()
        if self.must_take is not None:
            self.must_take.cancel()

    def send_400_response(self, msg: str) -> None:
        log(f"{self.client[0] if self.client else '-'} - 400")
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        is_whole = not self.cycle.more_body
        self.patience = self.bounds.client_seconds
        self._reads(self.bounds.client_seconds if is_whole else LINGER_SECONDS)
        super().on_response_complete()
        self._whole_request_comes()
        if self.has_ended_its_side and not self.is_answering:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_at = self.loop.time()
        self.must_take = self.loop.call_later(self.patience, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.patience = max(0.0, self.patience - (self.loop.time() - self.paused_at))
        if self.must_take is not None:
            self.must_take.cancel()

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def abort(self) -> None:
        """End the connection, whatever was not sent yet."""
        self._reads_no_longer()
        self.transport.abort()

    def _reads(self, seconds: float) -> None:
        """From now on the connection waits for its client, and may have to leave its place to another."""
        self._reads_no_longer()
        self.reading[self] = None
        self.must_send = self.loop.call_later(seconds, self.abort)

    def _whole_request_comes(self) -> None:
        """With the end of its request the connection keeps its place until the answer is sent."""
        if self.is_answering and not self.cycle.more_body:
            self._reads_no_longer()

    def _reads_no_longer(self) -> None:
        self.reading.pop(self, None)
        if self.must_send is not None:
            self.must_send.cancel()
