"""Records like SlimOrca's, and a stand-in for the Hugging Face Hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import dataset.files.download

WORDING = (
    "What is the capital of France? Paris. Add 12 and 35. The answer is 47.",
    "Write the letters c a t backwards. [USER] [ASSISTANT] [SYSTEM] Be brief, please.",
    "A longer text has more words than a short one, and some of them return: the words, the text, the answer.",
    *["  if a:    return b", "    if  c:   d  e", "   f    g"] * 9,  # so that runs of spaces have pieces of their own
)


def make_record(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"from": "system", "value": system, "weight": None}] if system else []
    messages.append({"from": "human", "value": question, "weight": 0.0})
    messages.append({"from": "gpt", "value": answer, "weight": 1.0})
    return {"conversations": messages}


def make_lines(count: int) -> list[str]:
    return [json.dumps(make_record(f"What is {i} + {i}?", f"The answer is {2 * i}.")) for i in range(count)]


@dataclass
class FakeHub:
    """A server with one repository, and the faults it shall have."""

    files: dict[str, bytes] = field(default_factory=dict)
    wrong_sha256: bool = False
    ignores_ranges: bool = False
    fails_after: int | None = None  # bytes of content it will send before it closes every connection early
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    endpoint: str = ""

    def listing(self) -> bytes:
        siblings = []
        for name, content in self.files.items():
            sha256 = hashlib.sha256(b"other" if self.wrong_sha256 else content).hexdigest()
            siblings.append({"rfilename": name, "size": len(content), "lfs": {"sha256": sha256, "size": len(content)}})
        return json.dumps({"sha": "0123456789abcdef", "siblings": siblings}).encode()


class HubHandler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        name = self.path.rpartition("/resolve/0123456789abcdef/")[2]
        if self.path.startswith("/api/"):
            self._send(200, hub.listing())
        elif name not in hub.files:
            self._send(404, b"no such file")
        else:
            content, status = hub.files[name], 200
            if "Range" in self.headers and not hub.ignores_ranges:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                content, status = content[int(first) : int(last) + 1], 206
            self._send(status, content, limited=True)

    def _send(self, status: int, content: bytes, limited: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if limited and self.hub.fails_after is not None:
            content = content[: max(self.hub.fails_after - self.hub.sent, 0)]
        self.hub.sent += len(content) if limited else 0
        try:
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # a client that has read enough

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch, handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Let a server of this machine be the Hub; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(dataset.files.download, "RETRY_SECONDS", (0, 0))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
