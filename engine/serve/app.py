"""A small server for one model: OpenAI-compatible answers and a page to chat in; every request is bounded."""

import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dataset.text.conversation import Turn
from engine.build.text_checkpoint import LoadedModel, load_model
from engine.generate.decode import Token
from engine.generate.exits import calibrated_options
from engine.generate.options import ReplyOptions, ServeOptions
from engine.generate.reply import reply
from engine.serve.api import RequestError, ResponseFormat, parsed

PAGE = Path(__file__).parent / "page.html"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The page loads nothing from anywhere, and no other page may frame it.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Bounds:
    """What requests may take; what exceeds it is refused."""

    body_bytes: int = 1_000_000
    answers_at_once: int = 4  # their tokens are computed in turn
    connections: int = 64
    seconds_of_silence: float = 30.0  # of a client that sends or takes nothing


class ChatServer(ThreadingHTTPServer):
    """What the handlers of all connections share; connections beyond `bounds.connections` are closed at once."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(
        self, address: tuple[str, int], loaded: LoadedModel, options: ReplyOptions, bounds: Bounds | None = None
    ) -> None:
        self.loaded, self.options, self.bounds = loaded, options, bounds or Bounds()
        self.model_name = loaded.path.parent.name if loaded.path.name.startswith("step_") else loaded.path.name
        self.names = LOOPBACK if address[0] in LOOPBACK else ()  # by which it may be addressed; empty: any
        self.started = int(time.time())
        self.decode_lock = threading.Lock()  # one token at a time
        self.answer_places = threading.BoundedSemaphore(self.bounds.answers_at_once)
        self.free_connections = threading.BoundedSemaphore(self.bounds.connections)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    @contextmanager
    def answer_place(self) -> Iterator[None]:
        """A place among the answers that are being given, or a refusal."""
        if not self.answer_places.acquire(blocking=False):
            raise RequestError(f"{self.bounds.answers_at_once} answers are being given. Try again in a moment.", 429)
        try:
            yield
        finally:
            self.answer_places.release()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free_connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free_connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects is not an error of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.bounds.seconds_of_silence)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{self.address_string()} {format % args}", file=sys.stderr, flush=True)

    def do_GET(self) -> None:
        if not self._is_addressed_properly():
            return
        if self.path in ("/", "/index.html"):
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/v1/models":
            model = {
                "id": self.server.model_name,
                "object": "model",
                "created": self.server.started,
                "owned_by": "local",
            }
            self._send_json(200, {"object": "list", "data": [model]})
        elif self.path == "/health":
            self._send_json(200, {"status": "ok"})
        else:
            self._refuse(RequestError(f"There is nothing at {self.path[:200]}.", 404))

    def do_POST(self) -> None:
        if not self._is_addressed_properly():
            return
        try:
            content = self._content()
            if self.path != "/v1/chat/completions":
                raise RequestError(f"There is nothing at {self.path[:200]} to post to.", 404)
            with self.server.answer_place():
                send_rest = self._answer(content)
            send_rest()  # after the place is free: a client that has read the end may ask again at once
        except RequestError as error:
            self._refuse(error)

    def _content(self) -> bytes:
        if self.headers.get_content_type() != "application/json":  # a foreign page could send other types unasked
            raise RequestError("Expected the content type application/json.", 415)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise RequestError("Expected a Content-Length.", 411)
        if int(length) > self.server.bounds.body_bytes:
            raise RequestError(f"{length} bytes; expected at most {self.server.bounds.body_bytes}.", 413)
        return self.rfile.read(int(length))

    def _answer(self, content: bytes) -> Callable[[], None]:
        """Finds the answer, streams it if that is wanted, and returns what sends the rest."""
        server = self.server
        request = parsed(content, server.model_name)
        response = ResponseFormat(server.model_name, server.loaded.tokenizer, request)
        try:
            options = request.options(server.options, server.loaded.window)
            if request.stream:
                with_usage = bool(request.stream_options and request.stream_options.include_usage)
                return self._stream(request.turns(), options, response, with_usage)
            (answer,) = reply(
                server.loaded,
                [request.turns()],
                options,
                on_token=lambda token, text: self._check_client(),
                decode_lock=server.decode_lock,
            )
        except RequestError:
            raise
        except ValueError as error:  # what the model cannot do, such as a prompt beyond its window
            raise RequestError(str(error)) from None
        return lambda: self._send_json(200, response.whole(answer))

    def _stream(
        self, turns: list[Turn], options: ReplyOptions, response: ResponseFormat, with_usage: bool
    ) -> Callable[[], None]:
        """Server-sent events; the headers go out with the first token, so that a refusal can still have its status."""
        begun = False

        def on_token(token: Token, text: str) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._begin_events()
                self._event(response.piece("", [], role="assistant"))
            self._event(response.piece(text, [token]))

        server = self.server
        (answer,) = reply(server.loaded, [turns], options, on_token=on_token, decode_lock=server.decode_lock)

        def send_end() -> None:
            for last in response.end(answer, with_usage):
                self._event(last)
            self.wfile.write(b"data: [DONE]\n\n")
            self.wfile.flush()

        return send_end

    def _begin_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _check_client(self) -> None:
        """Stop answering a client that has disconnected."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError("the client has disconnected")

    def _is_addressed_properly(self) -> bool:
        """By a name of this machine: a page elsewhere must not reach a loopback server through a name of its own."""
        name = self.headers.get("Host", "").rsplit(":", 1)[0] if "]" not in self.headers.get("Host", "") else "::1"
        if not self.server.names or name in self.server.names:
            return True
        self._refuse(RequestError(f"Not a name of this server: {name[:100]!r}.", 421))
        return False

    def _refuse(self, error: RequestError) -> None:
        self.close_connection = True  # what was not read of the request must not be taken for the next one
        self._send_json(error.status, error.body())

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if kind.startswith("text/html"):
            self.send_header("Content-Security-Policy", PAGE_POLICY)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def serve_checkpoint(options: ServeOptions) -> None:
    """Serve until Ctrl-C; the address goes to standard output once requests are taken."""
    loaded = load_model(options.opening)
    usual = calibrated_options(options.reply, loaded.path)
    bounds = Bounds(answers_at_once=options.answers_at_once)
    with ChatServer((options.host, options.port), loaded, usual, bounds) as server:
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        print(f"http://{shown}:{port}", flush=True)
        if options.host not in LOOPBACK:
            print(f"open to other machines ({options.host}), without a password; Ctrl-C ends", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
