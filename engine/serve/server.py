"""What every server here is made of: the page, the gate, the loop that listens."""

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engine.serve.connections import Bounds, Connection
from engine.serve.gate import LOOPBACK, MAX_HEAD_BYTES, Gate, RequestError, json_response, not_offered, refused
from engine.serve.metrics import Metrics

STOP_SECONDS = 5.0  # for what the model is computing
# The page loads nothing from anywhere, and no other page may frame it.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)


class Servable(Protocol):
    """What answers requests, and can end them."""

    app: Starlette
    bounds: Bounds

    def stop(self) -> None: ...


def application(
    page: Path,
    routes: Sequence[Route],
    gauges: Callable[[], Mapping[str, float]],
    metrics: Metrics,
    *,
    names: Sequence[str] = LOOPBACK,
    api_key: str | None = None,
) -> Starlette:
    """The routes behind the gate, with the page, whether the server lives, and what it counts."""

    async def shown(request: Request) -> Response:
        return HTMLResponse(page.read_bytes(), headers={"Content-Security-Policy": PAGE_POLICY})

    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def measured(request: Request) -> Response:
        return PlainTextResponse(metrics.text(gauges()), media_type="text/plain; version=0.0.4")

    everywhere = {"/": shown, "/index.html": shown, "/health": health, "/metrics": measured}
    routes = [*(Route(path, endpoint) for path, endpoint in everywhere.items()), *routes]
    paths = {route.path for route in routes}
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, paths=paths, names=names, api_key=api_key, metrics=metrics)],
        exception_handlers={RequestError: refused, HTTPException: not_offered},
    )
    app.router.redirect_slashes = False
    return app


def name_of(checkpoint: Path) -> str:
    """How a model is called: a step by its run."""
    return checkpoint.parent.name if checkpoint.name.startswith("step_") else checkpoint.name


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
