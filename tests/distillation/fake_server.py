"""A server on this machine that answers as one of prompt log-probabilities does, or misbehaves as it is told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

MODEL = "tiny"


class FakeServer(ThreadingHTTPServer):
    """`fault` may change one thing that it does; `failures` so many requests are refused at first."""

    daemon_threads = True

    def __init__(self, model: Any, max_logprobs: int = 20, fault: str = "", failures: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.max_logprobs, self.fault, self.failures = model, max_logprobs, fault, failures
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def prompt_logprobs(self, ids: list[int], k: int) -> list[Any]:
        with torch.no_grad(), self.lock:
            logprobs = self.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        entries: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            top = logprobs[place].topk(k)
            told = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            told.setdefault(token, float(logprobs[place, token]))  # the token that came is always told
            ranks = sorted(told, key=lambda index: -told[index])
            entries.append(
                {
                    str(index): {"logprob": told[index], "rank": rank, "decoded_token": "x"}
                    for rank, index in sorted(enumerate(ranks, start=1), key=lambda pair: pair[1])
                }
            )
        return entries


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._send(404, {"error": "no such path"})

    def do_POST(self) -> None:
        server = self.server
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(question)
            server.keys.append(self.headers.get("Authorization"))
            server.failures -= 1
            refuses = server.failures >= 0
        k = question["prompt_logprobs"]
        if refuses:
            self._send(503, {"error": "busy"})
        elif server.fault == "moved":
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.invalid/v1/completions")
            self.end_headers()
        elif server.fault == "no json":
            self._send_bytes(200, b"<html>")
        elif server.fault == "huge":
            self._send_bytes(200, b" " * (4 << 20))
        elif server.fault == "denied":
            self._send(401, {"error": f"the key {self.headers.get('Authorization')} is wrong"})
        elif k > server.max_logprobs:
            text = f"Requested prompt logprobs of {k}, which is greater than max allowed: {server.max_logprobs}"
            self._send(400, {"error": {"message": text}})
        else:
            entries = server.prompt_logprobs(question["prompt"], k)
            if server.fault == "no first":
                entries = entries[1:]
            if server.fault == "few":
                entries[1] = dict(list(entries[1].items())[: k - 1])
            if server.fault == "not a number":
                entries[1] = {token: {"logprob": "NaN"} for token in entries[1]}
            told = {} if server.fault == "ignored" else {"prompt_logprobs": entries}
            self._send(200, {"choices": [{"index": 0, "text": "a"} | told]})

    def _send(self, code: int, content: Any) -> None:
        self._send_bytes(code, json.dumps(content).encode())

    def _send_bytes(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have heard enough
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at what our side says."""


@contextmanager
def serving(model: Any, **options: Any) -> Iterator[FakeServer]:
    server = FakeServer(model, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
