"""The response to a request for text, written while its tokens are computed."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Token
from engine.generate.options import DecodeOptions
from engine.generate.reply import Answering, Reply
from engine.serve.gate import RequestError, encoded
from engine.serve.metrics import TextMetrics
from engine.serve.scheduler import Event, Job, Scheduler, Unanswered

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
JSON = [(b"content-type", b"application/json")]


class Format(Protocol):
    """Writes answers as one of OpenAI's endpoints does, whole or in pieces."""

    def first(self, index: int) -> dict[str, Any] | None: ...

    def piece(self, index: int, text: str, token: Token) -> dict[str, Any]: ...

    def last(self, index: int, answer: Reply) -> dict[str, Any]: ...

    def usage(self, answers: Sequence[Reply]) -> dict[str, Any]: ...

    def whole(self, answers: Sequence[Reply]) -> dict[str, Any]: ...


class Disconnected(Exception):
    """The client has gone away."""


class Answers:
    """Answers all texts of one request. What cannot be answered is refused as long as nothing was sent."""

    def __init__(
        self, scheduler: Scheduler, metrics: TextMetrics, form: Format, *, streams: bool, with_usage: bool
    ) -> None:
        self.scheduler, self.metrics, self.form = scheduler, metrics, form
        self.streams, self.with_usage = streams, with_usage
        self.found: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.replies: list[Reply] = []
        self.jobs: list[Job] = []
        self.has_begun = False

    def add(self, loaded: LoadedModel, text: Answering, options: DecodeOptions, seconds: float) -> None:
        """Another text to continue, for which there are so many seconds; one without room for an answer is only told."""
        index = len(self.replies)
        self.replies.append(text.reply)
        if text.room == 0:
            text.reply.finish = "length"
            return

        def tell(event: Event) -> None:  # by the model's thread
            self.loop.call_soon_threadsafe(self.found.put_nowait, (index, event))

        self.jobs.append(Job(loaded, text, options, tell, time.monotonic() + seconds))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.send, self.connection = send, scope["state"]["connection"]
        watch = self.loop.create_task(self._watch(receive))
        try:
            for job in self.jobs:
                self.scheduler.submit(job, scope["client"][0] if scope["client"] else "")
            await (self._stream() if self.streams else self._whole())
        except Disconnected:
            self.connection.abort()
        except Unanswered as error:
            if not self.has_begun:
                raise RequestError(str(error), error.status) from None
            self.connection.abort()  # an answer without its end is known to be broken
        finally:
            watch.cancel()
            for job in self.jobs:
                self.scheduler.cancel(job)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.found.put_nowait((0, Disconnected()))

    async def _events(self) -> AsyncIterator[tuple[int, tuple[Token, str] | None]]:
        """Tokens with the number of their text, and the end of each text."""
        asked = time.monotonic()
        before: dict[int, float] = {}
        left = len(self.jobs)
        while left:
            index, event = await self.found.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                now = time.monotonic()
                if index in before:
                    self.metrics.token.observe(now - before[index])
                else:
                    self.metrics.first_token.observe(now - asked)
                    self.metrics.prompt_tokens += self.replies[index].prompt_tokens
                before[index] = now
                self.metrics.generated_tokens += 1
            yield index, event

    async def _stream(self) -> None:
        """Server-sent events; the headers go out with the first token, so that a refusal can still have its status."""
        has_begun: set[int] = set()
        async for index, event in self._events():
            if index not in has_begun:
                has_begun.add(index)
                await self._begin(EVENTS)
                if (first := self.form.first(index)) is not None:
                    await self._event(first)
            await self._event(
                self.form.last(index, self.replies[index])
                if event is None
                else self.form.piece(index, event[1], event[0])
            )
        await self._begin(EVENTS)
        for index in set(range(len(self.replies))) - has_begun:  # texts without an answer
            if (first := self.form.first(index)) is not None:
                await self._event(first)
            await self._event(self.form.last(index, self.replies[index]))
        if self.with_usage:
            await self._event(self.form.usage(self.replies))
        await self._send(b"data: [DONE]\n\n", more_body=False)

    async def _whole(self) -> None:
        async for _, event in self._events():
            # Whether a client that sends no more still listens shows when something is sent to it: spaces, which JSON ignores.
            if event is not None and self.connection.has_ended_its_side:
                await self._begin(JSON)
                await self._send(b" ")
        content = encoded(self.form.whole(self.replies))
        await self._begin([*JSON, (b"content-length", str(len(content)).encode())])
        await self._send(content, more_body=False)

    async def _begin(self, headers: list[tuple[bytes, bytes]]) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _event(self, content: dict[str, Any]) -> None:
        await self._send(b"data: " + encoded(content) + b"\n\n")

    async def _send(self, content: bytes, more_body: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": content, "more_body": more_body})
