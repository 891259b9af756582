"""HTTP/1.1 connections: requests are read whole, under a deadline, bounded in size and number; h11 does the format."""

import re
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11

MAX_HEAD_BYTES = 32_768  # of the request line and all headers
LINGER_SECONDS = 2.0  # to read what a refused client still sends: closing at once would cost it the refusal
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{1,5})?")
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Bounds:
    """What clients may take; what exceeds it is refused."""

    body_bytes: int = 1_000_000
    answers_at_once: int = 16  # rows of the running batch
    waiting: int = 256  # answers that may wait for a row
    connections: int = 64  # a further one takes the place of the one that has been sending its request for longest
    client_seconds: float = 30.0  # in all, for a client to send a request, and again to take its answer


class RequestError(ValueError):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


@dataclass(frozen=True)
class Request:
    """A whole request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def host(self) -> str | None:
        """The name by which the server is addressed, without brackets and port; None if it is no name."""
        found = HOST.fullmatch(self.headers.get("host", ""))
        return (found[1] or found[2]).lower() if found else None

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Connection(socketserver.BaseRequestHandler):
    """One client, whose requests are answered one after the other; `answer` is what a subclass adds."""

    request: socket.socket
    server: "Server"

    def answer(self, request: Request) -> None:
        """Send an answer, or raise a RequestError."""
        raise NotImplementedError

    def refuse(self, error: RequestError) -> None:
        """Send the error as an answer."""
        raise NotImplementedError

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        while self._answers_one():
            self.http.start_next_cycle()
        if self.http.their_state in (h11.SEND_BODY, h11.ERROR):
            self._linger()

    def send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        self.begin(status, kind, {"Content-Length": str(len(content))} | (headers or {}))
        if self.method != "HEAD":
            self.write(content)
        self.end()

    def begin(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        """The head of an answer whose content follows in pieces."""
        found = {"Content-Type": kind, "X-Content-Type-Options": "nosniff"} | (headers or {})
        if self.http.their_state is not h11.DONE:  # what was not read must not be taken for the next request
            found["Connection"] = "close"
        reason = HTTPStatus(status).phrase
        self._send(h11.Response(status_code=status, reason=reason, headers=list(found.items())))
        log(f"{self.client_address[0]} {self.shown} {status}")

    def write(self, content: bytes) -> None:
        self._send(h11.Data(data=content))

    def end(self) -> None:
        self._send(h11.EndOfMessage())

    @property
    def has_begun(self) -> bool:
        return self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def has_ended_its_side(self) -> bool:
        """Whether nothing more comes from the client, which may have vanished or may still be listening."""
        self.request.settimeout(0)
        try:
            return self.request.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    def _answers_one(self) -> bool:
        """Read a request and answer it; whether another may follow."""
        self.patience = self.server.bounds.client_seconds
        self.method, self.shown = "", "-"  # of the request; in the log
        self.server.reads(self.request)
        try:
            try:
                request = self._read()
            except h11.RemoteProtocolError as error:
                raise RequestError(f"Not a request of HTTP/1.1: {str(error)[:200]}", error.error_status_hint) from None
            if request is None:
                return False
            self.server.answers(self.request)
            self.answer(request)
        except RequestError as error:
            if self.has_begun:  # too late for another status: an answer without its end is known to be broken
                return False
            self.refuse(error)
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    def _read(self) -> Request | None:
        """The next request; None if there is none."""
        deadline = time.monotonic() + self.server.bounds.client_seconds
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                if self.http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self.http.receive_data(self._received(deadline))
            elif isinstance(event, h11.Request):
                head = event
                self._check_head(head)
            elif isinstance(event, h11.Data):
                body += event.data
                self._check_size(len(body))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode(), headers, bytes(body))
            else:
                return None

    def _check_head(self, head: h11.Request) -> None:
        self.method = head.method.decode()
        self.shown = f"{self.method} {head.target.decode()[:200]}"
        headers = dict(head.headers)
        if b"content-length" in headers:
            if b"transfer-encoding" in headers:
                raise RequestError("Content-Length and Transfer-Encoding contradict each other: expected one of them.")
            self._check_size(int(headers[b"content-length"]))

    def _check_size(self, size: int) -> None:
        most = self.server.bounds.body_bytes
        if size > most:
            raise RequestError(f"{size} bytes; expected at most {most}.", 413)

    def _received(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self.request.settimeout(left)
        return self.request.recv(65_536)

    def _send(self, event: Any) -> None:
        """Send, as long as the client has patience left of its time for this answer."""
        content = self.http.send(event)
        if not content:
            return
        started = time.monotonic()
        self.request.settimeout(max(self.patience, 0.001))
        self.request.sendall(content)
        self.patience -= time.monotonic() - started

    def _linger(self) -> None:
        """Read on for a moment, so that a client that is still sending finds its answer."""
        self.server.reads(self.request)
        deadline = time.monotonic() + LINGER_SECONDS
        self.request.shutdown(socket.SHUT_WR)
        while self._received(deadline):
            pass


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, of which there are at most `bounds.connections`."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Connection], bounds: Bounds) -> None:
        self.bounds = bounds
        self.lock = threading.Lock()
        self.is_reading: dict[socket.socket, bool] = {}  # of every connection, in the order of their last requests
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def reads(self, connection: socket.socket) -> None:
        """From now on the connection waits for its client, and may have to leave its place to another."""
        self._moves(connection, is_reading=True)

    def answers(self, connection: socket.socket) -> None:
        """The connection has its request and keeps its place until the answer is sent."""
        self._moves(connection, is_reading=False)

    def _moves(self, connection: socket.socket, *, is_reading: bool) -> None:
        with self.lock:
            if connection not in self.is_reading:
                raise ConnectionAbortedError("another connection has taken its place")
            del self.is_reading[connection]
            self.is_reading[connection] = is_reading

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            is_full = len(self.is_reading) >= self.bounds.connections
            oldest = next((held for held, reading in self.is_reading.items() if reading), None) if is_full else None
            if oldest is not None:
                del self.is_reading[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread finds an ended connection
            if not is_full or oldest is not None:
                self.is_reading[request] = True
        if is_full and oldest is None:
            with suppress(OSError):
                request.sendall(FULL)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.is_reading.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects or takes too long is not an error of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def log(text: str) -> None:
    """A line on standard error, in which nothing that a client sent controls a terminal."""
    print(text.encode("unicode_escape").decode(), file=sys.stderr, flush=True)
