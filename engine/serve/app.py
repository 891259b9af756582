"""A small server for one model: OpenAI-compatible answers and a page to chat in."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from engine.build.text_checkpoint import LoadedModel, load_model
from engine.entry import INTERRUPTED
from engine.generate.batch import Token
from engine.generate.depth import options_for
from engine.generate.options import ReplyOptions, ServeOptions
from engine.generate.reply import Answering
from engine.serve.api import ResponseFormat, most_steps, parsed
from engine.serve.http import Bounds, Connection, Request, RequestError, Server
from engine.serve.scheduler import Job, QueueFull, Scheduler

PAGE = Path(__file__).parent / "page.html"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The page loads nothing from anywhere, and no other page may frame it.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
CHAT = "/v1/chat/completions"


class ChatServer(Server):
    """What the connections share: the model, how to answer, and the scheduler of the answers."""

    def __init__(
        self, address: tuple[str, int], loaded: LoadedModel, options: ReplyOptions, bounds: Bounds | None = None
    ) -> None:
        bounds = bounds or Bounds()
        self.loaded, self.options = loaded, options
        self.model_name = loaded.path.parent.name if loaded.path.name.startswith("step_") else loaded.path.name
        self.names = LOOPBACK if address[0] in LOOPBACK else ()  # by which it may be addressed; empty: any
        self.started = int(time.time())
        super().__init__(address, ChatConnection, bounds)
        steps = most_steps(options, loaded)
        self.scheduler = Scheduler(loaded, options.decode, steps, bounds.answers_at_once, bounds.waiting)


class ChatConnection(Connection):
    """What is answered."""

    server: ChatServer

    def answer(self, request: Request) -> None:
        server, path = self.server, request.path.partition("?")[0]
        if server.names and request.host not in server.names:
            # A page elsewhere must not reach a loopback server through a name of its own.
            raise RequestError(f"Not a name of this server: {request.headers.get('host', '')[:100]!r}.", 421)
        if path == CHAT and request.method == "POST":
            if request.content_type != "application/json":  # a foreign page could send other types unasked
                raise RequestError("Expected the content type application/json.", 415)
            self._answer(request.body)
        elif path not in ("/", "/index.html", "/v1/models", "/health", CHAT):
            raise RequestError(f"There is nothing at {path[:200]}.", 404)
        elif path == CHAT or request.method not in ("GET", "HEAD"):
            raise RequestError(f"{path} takes {'POST' if path == CHAT else 'GET'}, not {request.method}.", 405)
        elif path == "/v1/models":
            model = {"id": server.model_name, "object": "model", "created": server.started, "owned_by": "local"}
            self._send_json(200, {"object": "list", "data": [model]})
        elif path == "/health":
            self._send_json(200, {"status": "ok"})
        else:
            self.send(200, PAGE.read_bytes(), "text/html; charset=utf-8", {"Content-Security-Policy": PAGE_POLICY})

    def refuse(self, error: RequestError) -> None:
        self._send_json(error.status, error.body())

    def _answer(self, content: bytes) -> None:
        """Answer, token by token if that is wanted."""
        server = self.server
        request = parsed(content, server.model_name)
        response = ResponseFormat(server.model_name, server.loaded.tokenizer, request)
        try:
            options = request.options(server.options, server.loaded)
            on_token = self._streaming(response) if request.stream else self._check_client
            answering = Answering.of_turns(server.loaded, request.turns(), options)
            found: SimpleQueue[tuple[Token, str] | Exception | None] = SimpleQueue()
            job = Job(server.loaded, answering, options.decode, found.put)
            server.scheduler.submit(job, self.client_address[0])
        except RequestError:
            raise
        except QueueFull as error:
            raise RequestError(str(error), 503) from None
        except ValueError as error:  # what the model cannot do, such as a prompt beyond its window
            raise RequestError(str(error)) from None
        try:
            while (event := found.get()) is not None:
                if isinstance(event, Exception):
                    raise RequestError(str(event), 503)
                on_token(*event)
        finally:
            server.scheduler.cancel(job)
        if not request.stream:
            self._send_whole(encoded(response.whole(answering.reply)))
        else:
            with_usage = bool(request.stream_options and request.stream_options.include_usage)
            self._end_events(response.end(answering.reply, with_usage))

    def _streaming(self, response: ResponseFormat) -> Callable[[Token, str], None]:
        """Server-sent events; the headers go out with the first token, so that a refusal can still have its status."""

        def on_token(token: Token, text: str) -> None:
            if not self.has_begun:
                self.begin(200, "text/event-stream; charset=utf-8", {"Cache-Control": "no-cache"})
                self._event(response.piece("", [], role="assistant"))
            self._event(response.piece(text, [token]))

        return on_token

    def _event(self, content: dict[str, Any]) -> None:
        self.write(b"data: " + encoded(content) + b"\n\n")

    def _end_events(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self._event(event)
        self.write(b"data: [DONE]\n\n")
        self.end()

    def _check_client(self, token: Token, text: str) -> None:
        """Stop answering a client that has vanished.

        Whether one that sends no more still listens shows when something is sent to it: spaces, which JSON ignores.
        """
        if self.has_begun or self.has_ended_its_side:
            if not self.has_begun:
                self.begin(200, "application/json")
            self.write(b" ")

    def _send_whole(self, content: bytes) -> None:
        if self.has_begun:
            self.write(content)
            self.end()
        else:
            self.send(200, content, "application/json")

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self.send(status, encoded(content), "application/json")


def encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def serve_checkpoint(options: ServeOptions) -> None:
    """Serve until Ctrl-C; the address goes to standard output once requests are taken."""
    loaded = load_model(options.opening)
    usual = options_for(loaded, options.reply)
    bounds = Bounds(answers_at_once=options.answers_at_once)
    try:
        opened = ChatServer((options.host, options.port), loaded, usual, bounds)
    except (OSError, OverflowError, TypeError) as error:  # names and numbers that sockets do not take
        raise ValueError(
            f"Cannot listen at --host {options.host!r} --port {options.port} ({error}). Choose another address of this "
            "machine, or a port from 0 (a free one) to 65535."
        ) from None
    with opened as server:
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        print(f"http://{shown}:{port}", flush=True)
        if options.host not in LOOPBACK:
            print(f"open to other machines ({options.host}), without a password; Ctrl-C ends", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            server.scheduler.stop()
            # A client's thread may still be inside torch, and Python's shutdown under it would abort the process.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
