"""A client of servers that complete prompts the way OpenAI's does: plain HTTP, with time limits and retries."""

import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

API_KEY = "TEACHER_API_KEY"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before trying again; doubled each time
SHOWN = 300  # characters of an answer that an error repeats
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CompletionClient:
    """Sends JSON, with the key if there is one, to `url` and nowhere else: a redirect is an error."""

    def __init__(self, url: str, api_key: str | None, timeout: float, max_retries: int) -> None:
        self.url = _checked(url)
        self._key = api_key or os.environ.get(API_KEY)
        self._timeout, self._max_retries = timeout, max_retries
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urllib.parse.urlsplit(self.url).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's own addresses
        self._opener = urllib.request.build_opener(*handlers)
        self._closed = threading.Event()

    def close(self) -> None:
        """Do not retry any more."""
        self._closed.set()

    def ask(self, path: str, limit: int, content: Any = None) -> Any:
        """The answer's JSON, of at most `limit` bytes, after a GET, or a POST of `content`."""
        address, pause = f"{self.url}{path}", FIRST_PAUSE
        body = None if content is None else json.dumps(content).encode()
        for left in range(self._max_retries, -1, -1):
            try:
                return self._once(address, body, limit)
            except urllib.error.HTTPError as error:
                said = self._shown(error.read(limit))
                if error.code in (408, 425, 429) or error.code >= 500:
                    problem = f"it answered {error.code} ({said})"
                else:
                    raise ServerError(address, error.code, said) from error
            except (OSError, http.client.HTTPException) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if not left or self._closed.wait(pause):
                break
            pause = min(2 * pause, LONGEST_PAUSE)
        raise ValueError(
            f"The teacher's server {address} gave no answer in {self._max_retries + 1} attempts of at most "
            f"{self._timeout:g} s: {problem}. Check that it runs and that the address is right, or raise the time-out."
        )

    def _once(self, address: str, body: bytes | None, limit: int) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(address, data=body, headers=headers)
        with self._opener.open(request, timeout=self._timeout) as response:
            content = response.read(limit + 1)
        if len(content) > limit:
            raise ValueError(
                f"The answer of the teacher's server {address} is longer than {limit / 1e6:.0f} MB: it does not send the "
                "prompt log-probabilities that it was asked for."
            )
        try:
            return json.loads(content)
        except ValueError as error:
            raise ValueError(
                f"The teacher's server {address} answered with something that is not JSON: {self._shown(content)!r}. Check "
                "the address; what is needed is a server such as vLLM's, at http://host:port."
            ) from error

    def _shown(self, content: bytes) -> str:
        text = " ".join(content.decode("utf-8", "replace").split())[:SHOWN]
        return text.replace(self._key, "***") if self._key else text


class ServerError(ValueError):
    """The server understood the request and refused it."""

    def __init__(self, address: str, code: int, said: str) -> None:
        remedy = f" Set {API_KEY} to its key." if code in (401, 403) else ""
        if code == 404:
            remedy = " Check the address and the model's name; what is needed is a server such as vLLM's."
        super().__init__(f"The teacher's server {address} answered {code}: {said}{remedy}")
        self.code, self.said = code, said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        host = urllib.parse.urlsplit(newurl).netloc or "elsewhere"
        raise ValueError(
            f"The teacher's server {req.full_url} redirects to {host}, which is not followed: texts and key would go "
            "there. If that is the server, give its address as teacher_url."
        )


def _checked(url: str) -> str:
    parts = urllib.parse.urlsplit(url.rstrip("/").removesuffix("/v1"))
    if "@" in parts.netloc:
        raise ValueError(f"teacher_url holds a name or a password. Set {API_KEY} to the server's key instead.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"teacher_url={url!r}: expected an address such as http://localhost:8000.")
    return parts.geturl()
