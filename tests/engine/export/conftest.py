"""A stand-in for the Hub that keeps repositories in memory: they are made, written in commits, listed and read."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

from tests.dataset.instruct_samples import serve_hub


class FakeHub:
    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.token: str | None = None  # that is asked for, if any
        self.requests: list[str] = []

    def revision(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if path == "/":
            return self._send(200, b"")
        is_api = parts[0] == "api"
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo not in self.hub.repos:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if not self._is_allowed():
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        files = self.hub.repos[repo]
        if is_api and "tree" in parts:
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self._json(listing)
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": repo, "sha": self.hub.revision(repo), "siblings": siblings})
        name = "/".join(parts[4:])
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": self.hub.revision(repo)}
        self._send(200, files[name], etag)

    def do_POST(self) -> None:
        body = self._body()
        self.hub.requests.append(f"POST {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if not self._is_allowed():
            return self._send(401, b"")
        if self.path.startswith("/api/repos/create"):
            made = json.loads(body)
            repo = f"{made.get('organization') or 'ann'}/{made['name']}"
            self.hub.repos.setdefault(repo, {})
            return self._json({"url": f"http://{self.headers['Host']}/{repo}"})
        if parts[1] == "validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo = "/".join(parts[2:4])
        if "preupload" in parts:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert "commit" in parts, self.path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        where = f"http://{self.headers['Host']}/{repo}/commit/{self.hub.revision(repo)}"
        self._json({"success": True, "commitUrl": where, "commitOid": self.hub.revision(repo)})

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _is_allowed(self) -> bool:
        return self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """The Hub of this test, with a cache of its own."""
    hub = FakeHub()
    with serve_hub(monkeypatch, type("Handler", (Handler,), {"hub": hub})) as address:
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(huggingface_hub.constants.ENDPOINT, address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
