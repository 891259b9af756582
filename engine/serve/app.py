"""Serves a model of text: OpenAI-compatible answers to many at once, and a page to chat in."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.build.text_checkpoint import LoadedModel, load_model
from engine.checkpoints.load import Checkpoint
from engine.config.text import ChatConfig
from engine.generate.depth import options_for
from engine.generate.options import CHAT_REPLY, ReplyOptions, ServeOptions
from engine.generate.reply import Answering
from engine.generate.score import ScoredToken, score
from engine.generate.terminal import usual_system
from engine.serve.answers import Answers, Format
from engine.serve.api import ChatFormat, ChatRequest, TextRequest, most_steps, parsed
from engine.serve.completions import CompletionFormat, CompletionRequest
from engine.serve.connections import Bounds
from engine.serve.gate import LOOPBACK, RequestError, json_body, json_response
from engine.serve.metrics import TextMetrics
from engine.serve.scheduler import Scheduler, Unanswered, Work
from engine.serve.server import application, name_of

PAGE = Path(__file__).parent / "page.html"


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
        self.model_name = name_of(loaded.path)
        self.started, self.metrics = int(time.time()), TextMetrics()
        self.scheduler = Scheduler(loaded, options.decode, most_steps(options, loaded), answers_at_once, max_waiting)
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
        ]
        self.app = application(PAGE, routes, self._gauges, self.metrics, names=names, api_key=api_key)

    def stop(self) -> None:
        self.scheduler.stop()

    def _gauges(self) -> dict[str, float]:
        return {
            "trm_requests_waiting": self.scheduler.num_waiting,
            "trm_answers_running": len(self.scheduler.jobs),
            "trm_answers_at_once": self.scheduler.answers_at_once,
        }

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


def text_service(
    stored: Checkpoint, options: ServeOptions, names: tuple[str, ...] = LOOPBACK, api_key: str | None = None
) -> Service:
    """The service of a checkpoint of text, with what is usual for it."""
    loaded = load_model(options.opening, stored)
    usual = options_for(loaded, options.reply)
    temperature = options.usual_temperature
    if temperature is None:
        temperature = CHAT_REPLY.decode.sampling.temperature if knows_turns(loaded) else 0.0
    decode = replace(usual.decode, sampling=replace(usual.decode.sampling, temperature=temperature))
    return Service(
        loaded,
        replace(usual, decode=decode),
        names=names,
        api_key=api_key,
        answers_at_once=options.answers_at_once,
        max_waiting=options.max_waiting,
    )
