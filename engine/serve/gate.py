"""Who may ask the server, by which of its names, how a request is read, and how it is refused."""

import hmac
import json
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.metrics import Metrics

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{1,5})?")
MAX_HEAD_BYTES = 32_768  # of all headers
OPEN_PATHS = ("/", "/index.html", "/health")  # which need no API key

AnyRequest = TypeVar("AnyRequest", bound=BaseModel)


class RequestError(ValueError):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Gate:
    """What every request passes: who may ask, by which names of the server; what is logged and counted."""

    def __init__(
        self, app: ASGIApp, paths: Collection[str], names: Sequence[str], api_key: str | None, metrics: Metrics
    ) -> None:
        self.app, self.paths, self.names, self.api_key, self.metrics = app, paths, names, api_key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, status = Request(scope), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
                log(f"{request.client.host if request.client else '-'} {request.method} {scope['path'][:200]} {status}")
            await send(message)

        try:
            self._check(request)
        except RequestError as error:
            await refused(request, error)(scope, receive, noted)
        else:
            await self.app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests[path, str(status or "gone")] += 1

    def _check(self, request: Request) -> None:
        headers = request.headers
        found = HOST.fullmatch(headers.get("host", ""))
        if self.names and (found is None or (found[1] or found[2]).lower() not in self.names):
            # A page elsewhere must not reach a loopback server through a name of its own.
            raise RequestError(f"Not a name of this server: {headers.get('host', '')[:100]!r}.", 421)
        if (size := sum(len(name) + len(value) for name, value in headers.raw)) > MAX_HEAD_BYTES:
            raise RequestError(f"{size} bytes of headers; expected at most {MAX_HEAD_BYTES}.", 431)
        if "content-length" in headers and "transfer-encoding" in headers:
            raise RequestError("Content-Length and Transfer-Encoding contradict each other: expected one of them.")
        if self.api_key is not None and request.scope["path"] not in OPEN_PATHS:
            kind, _, key = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(
                key.strip().encode("latin-1"), self.api_key.encode()
            ):
                raise RequestError("Expected the API key of this server: Authorization: Bearer <key>.", 401)


async def json_body(request: Request, most_bytes: int) -> bytes:
    """The content of a request, if it is of the right type and not too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("Expected the content type application/json.", 415)  # others a foreign page could send

    def check(size: int) -> None:
        if size > most_bytes:
            raise RequestError(f"{size} bytes; expected at most {most_bytes}.", 413)

    check(int(request.headers.get("content-length", 0)))
    body = bytearray()
    async for part in request.stream():
        body += part
        check(len(body))
    return bytes(body)


def validated(kind: type[AnyRequest], content: bytes) -> AnyRequest:
    """The request, or a RequestError that names what is wrong with it."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        where = [".".join(map(str, problem["loc"])) or "body" for problem in problems]
        found = "; ".join(f"{place}: {problem['msg']}" for place, problem in zip(where[:5], problems, strict=False))
        raise RequestError(found, param=where[0]) from None


def encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(content), status, headers, "application/json")


def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (400, 431):  # what was not read must not be taken for the next request
        headers["Connection"] = "close"
    return json_response(error.body(), error.status, headers)


def not_offered(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    path = request.scope["path"][:200]
    words = f"{path} takes {allowed}, not {request.method}." if allowed else f"There is nothing at {path}."
    return refused(request, RequestError(words, error.status_code))


def log(text: str) -> None:
    """A line on standard error, in which nothing that a client sent controls a terminal."""
    print(text.encode("unicode_escape").decode(), file=sys.stderr, flush=True)
