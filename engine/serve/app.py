"""A server for one model: OpenAI-compatible answers to many at once, and a page to chat in."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engine.build.text_checkpoint import LoadedModel, load_model
from engine.config.text import ChatConfig
from engine.entry import INTERRUPTED
from engine.generate.depth import options_for
from engine.generate.options import CHAT_REPLY, ReplyOptions, ServeOptions
from engine.generate.reply import Answering
from engine.generate.score import ScoredToken, score
from engine.generate.terminal import usual_system
from engine.serve.answers import Answers, Format
from engine.serve.api import ChatFormat, ChatRequest, RequestError, TextRequest, json_response, most_steps, parsed
from engine.serve.completions import CompletionFormat, CompletionRequest
from engine.serve.connections import Bounds, Connection
from engine.serve.gate import LOOPBACK, MAX_HEAD_BYTES, Gate, json_body, not_offered, refused
from engine.serve.metrics import Metrics
from engine.serve.scheduler import STOP_SECONDS, Scheduler, Unanswered, Work

PAGE = Path(__file__).parent / "page.html"
# The page loads nothing from anywhere, and no other page may frame it.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
API_KEY_VARIABLE = "TRM_API_KEY"


class Service:
    """What the connections share: the model, how to answer, and the scheduler of the answers."""

    def __init__(
        self,
        loaded: LoadedModel,
        options: ReplyOptions,
        bounds: Bounds | None = None,
        *,
        names: tuple[str, ...] = LOOPBACK,
        api_key: str | None = None,
        answers_at_once: int = 16,
        max_waiting: int = 256,
    ) -> None:
        self.loaded, self.options, self.bounds = loaded, options, bounds or Bounds()
        self.model_name = loaded.path.parent.name if loaded.path.name.startswith("step_") else loaded.path.name
        self.started, self.metrics = int(time.time()), Metrics()
        self.scheduler = Scheduler(loaded, options.decode, most_steps(options, loaded), answers_at_once, max_waiting)
        routes = [
            *(Route(path, self.page) for path in ("/", "/index.html")),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.measured),
        ]
        paths = {route.path for route in routes}
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Gate, paths=paths, names=names, api_key=api_key, metrics=self.metrics)],
            exception_handlers={RequestError: refused, HTTPException: not_offered},
        )
        self.app.router.redirect_slashes = False

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"Content-Security-Policy": PAGE_POLICY})

    async def models(self, request: Request) -> Response:
        """With what is ours beyond OpenAI's: what the model knows of earlier turns, and what is so unless asked otherwise."""
        decode, steps = self.options.decode, most_steps(self.options, self.loaded)
        depth = decode.depth or self.loaded.model.config.halt_max_steps
        model = {
            **{"id": self.model_name, "object": "model", "created": self.started, "owned_by": "local"},
            **{"window": self.loaded.window, "most_depth": steps, "knows_turns": knows_turns(self.loaded)},
            "usual": {
                "temperature": decode.sampling.temperature,
                "max_tokens": self.options.max_tokens or self.loaded.window // 2,
                "depth": depth if decode.exit.kind == "none" else f"up to {depth}, exit {decode.exit.kind}",
                "system": usual_system(self.loaded),
            },
        }
        return json_response({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def measured(self, request: Request) -> Response:
        gauges = {
            "trm_requests_waiting": self.scheduler.num_waiting,
            "trm_answers_running": len(self.scheduler.jobs),
            "trm_answers_at_once": self.scheduler.answers_at_once,
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Answers:
        asked = parsed(ChatRequest, await json_body(request, self.bounds.body_bytes), self.model_name)
        with refusals():
            options = asked.options(self.options, self.loaded)
            text = Answering.of_turns(self.loaded, asked.turns(), options)
            return self._answers(ChatFormat(self.model_name, self.loaded.tokenizer, asked), asked, [text], options)

    async def complete(self, request: Request) -> Answers:
        asked = parsed(CompletionRequest, await json_body(request, self.bounds.body_bytes), self.model_name)
        with refusals():
            options = asked.options(self.options, self.loaded)
            prompts = asked.prompts(self.loaded)
            texts = [Answering.of_text(self.loaded, ids, asked.room(ids, self.loaded), options) for ids in prompts]
            client = request.client.host if request.client else ""
            scores = await self._scores(prompts, options, client) if asked.wants_score else []
            form = CompletionFormat(self.model_name, self.loaded.tokenizer, asked, prompts, scores)
            return self._answers(form, asked, texts, options)

    def _answers(self, form: Format, asked: TextRequest, texts: Sequence[Answering], options: ReplyOptions) -> Answers:
        found = Answers(self.scheduler, self.metrics, form, streams=asked.stream, with_usage=asked.with_usage)
        for text in texts:
            found.add(self.loaded, text, options.decode, self.bounds.answer_seconds)
        return found

    async def _scores(self, texts: Sequence[list[int]], options: ReplyOptions, client: str) -> list[list[ScoredToken]]:
        """How likely each text's tokens are, told by the model's thread."""
        loop = asyncio.get_running_loop()

        async def found(ids: list[int]) -> list[ScoredToken]:
            future: asyncio.Future[list[ScoredToken] | Unanswered] = loop.create_future()

            def do() -> list[ScoredToken]:
                return score(self.loaded.model, [ids], options.decode)[0]

            self.scheduler.submit(Work(do, lambda result: loop.call_soon_threadsafe(future.set_result, result)), client)
            result = await future
            if isinstance(result, Unanswered):
                raise result
            return result

        try:
            return list(await asyncio.gather(*map(found, texts)))
        except Unanswered as error:
            raise RequestError(str(error), error.status) from None


def knows_turns(loaded: LoadedModel) -> bool:
    """Whether the model was trained on conversations of several turns; instruction data has single questions."""
    return isinstance(loaded.config, ChatConfig)


@contextmanager
def refusals() -> Iterator[None]:
    """What the model cannot do, such as a prompt beyond its window, is the request's fault."""
    try:
        yield
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from None


class Server(uvicorn.Server):
    """Listens; on a signal it ends the answers that are being given, each with a word to its client."""

    def __init__(self, app: ASGIApp, bounds: Bounds, listening: socket.socket, stop: Callable[[], None]) -> None:
        self.listening, self.stop = listening, stop
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, bounds, {}),  # type: ignore[arg-type]
                loop="asyncio",
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                date_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=int(bounds.client_seconds) + 1,
                timeout_graceful_shutdown=int(STOP_SECONDS),
            )
        )

    def serve_forever(self) -> None:
        self.run(sockets=[self.listening])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop()
        await super().shutdown(sockets)


def listening_at(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError, TypeError, UnicodeError) as error:  # names and numbers that sockets do not take
        raise ValueError(
            f"Cannot listen at --host {host!r} --port {port} ({error}). Choose another address of this "
            "machine, or a port from 0 (a free one) to 65535."
        ) from None


def serve_checkpoint(options: ServeOptions) -> None:
    """Serve until Ctrl-C; the address goes to standard output once requests are taken."""
    loaded = load_model(options.opening)
    usual = options_for(loaded, options.reply)
    temperature = options.usual_temperature
    if temperature is None:
        temperature = CHAT_REPLY.decode.sampling.temperature if knows_turns(loaded) else 0.0
    decode = replace(usual.decode, sampling=replace(usual.decode.sampling, temperature=temperature))
    api_key = options.api_key or os.environ.get(API_KEY_VARIABLE) or None
    listening = listening_at(options.host, options.port)
    service = Service(
        loaded,
        replace(usual, decode=decode),
        names=LOOPBACK if options.host in LOOPBACK else (),
        api_key=api_key,
        answers_at_once=options.answers_at_once,
        max_waiting=options.max_waiting,
    )
    host, port = listening.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    if options.host not in LOOPBACK:
        secret = "with an API key" if api_key else "without a password (--api-key asks for one)"
        print(f"open to other machines ({options.host}), {secret}; Ctrl-C ends", file=sys.stderr)
    try:
        Server(service.app, service.bounds, listening, service.scheduler.stop).serve_forever()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        # The model's thread may still be inside torch, and Python's shutdown under it would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
