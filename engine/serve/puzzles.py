"""Serves a model of puzzles: a page that shows a puzzle being solved, and the answer after every supervision step as JSON."""

import asyncio
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dataset.common import IGNORE_LABEL_ID
from dataset.puzzles import arc_grids
from dataset.puzzles.rules import is_solution, question_problem
from dataset.puzzles.samples import EMPTY_DIGIT, MAZE_TOKENS, Sample
from engine.build.puzzle_checkpoint import PuzzleModel, load_puzzle_model
from engine.build.puzzle_examples import Examples
from engine.checkpoints.load import Checkpoint
from engine.generate.options import ServeOptions
from engine.serve.connections import Bounds
from engine.serve.gate import LOOPBACK, RequestError, Strict, encoded, json_body, json_response, validated
from engine.serve.metrics import Metrics
from engine.serve.server import application, name_of
from engine.tasks.rollouts import Effort
from engine.tasks.traces import Trace, follow

PAGE = Path(__file__).parent / "puzzles.html"
MOST_STEPS, MOST_TIMES_TRAINED = 64, 4  # supervision steps that may be asked for, whichever is more
ASK_SECONDS = 0.2  # how often a client that has ended its side is asked whether it still listens
JSON = [(b"content-type", b"application/json")]
USED_OPTIONS = ("opening", "host", "port", "max_waiting", "api_key")  # the others are about text

Token = Annotated[int, Field(strict=True, ge=0)]


class ExampleRequest(Strict):
    """GET /puzzles/example, whose words come from the address."""

    split: Literal["test", "train"] = "test"
    number: int | None = Field(None, ge=0)
    name: str | None = None


class SolveRequest(Strict):
    """POST /puzzles/solve."""

    inputs: list[Token]
    labels: list[Token | None] | None = Field(None, description="the answer, where it is known; null: does not count")
    identifier: Token | None = None
    steps: Annotated[int, Field(strict=True, ge=1)] | None = Field(None, description="default: as many as in training")

    def sample(self, model: PuzzleModel) -> Sample:
        """The puzzle, whose tokens the model knows."""
        metadata = model.metadata
        labels = [None] * len(self.inputs) if self.labels is None else self.labels
        for name, tokens in (("inputs", self.inputs), ("labels", labels)):
            if len(tokens) != metadata.seq_len:
                raise RequestError(f"{name}: {len(tokens)} cells; expected {metadata.seq_len}, row by row.", param=name)
            if (largest := max(token or 0 for token in tokens)) >= metadata.vocab_size:
                raise RequestError(f"{name}: token {largest}; expected 0 to {metadata.vocab_size - 1}.", param=name)
        if self.identifier is None and needs_identifier(model):
            raise RequestError(
                "identifier: expected that of a puzzle, as /puzzles/example gives it.", param="identifier"
            )
        identifier = metadata.blank_identifier_id if self.identifier is None else self.identifier
        if identifier >= metadata.num_puzzle_identifiers:
            last = metadata.num_puzzle_identifiers - 1
            raise RequestError(f"identifier: {identifier}; expected 0 to {last}.", param="identifier")
        known = [IGNORE_LABEL_ID if token is None else token for token in labels]
        return Sample(0, np.array(self.inputs, dtype=np.int32), np.array(known, dtype=np.int32), identifier)


class PuzzleService:
    """What the connections share: the model, which one thread uses for one puzzle after the other, and the data set."""

    def __init__(
        self,
        model: PuzzleModel,
        bounds: Bounds | None = None,
        *,
        names: tuple[str, ...] = LOOPBACK,
        api_key: str | None = None,
        max_waiting: int = 256,
    ) -> None:
        self.model, self.bounds, self.max_waiting = model, bounds or Bounds(), max_waiting
        self.examples = Examples(model)
        config = model.head.model.config
        self.usual_steps = config.depth_at(1.0).max_steps
        self.most_steps = 1 if config.reads_once else max(MOST_STEPS, MOST_TIMES_TRAINED * self.usual_steps)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.num_asked = 0  # puzzles that are being solved or wait
        self.is_stopping = threading.Event()
        routes = [
            Route("/puzzles/board", self.board),
            Route("/puzzles/names", self.names),
            Route("/puzzles/example", self.example),
            Route("/puzzles/solve", self.solve, methods=["POST"]),
            Route("/v1/{rest:path}", self.no_text, methods=["GET", "POST"]),
        ]
        self.app = application(PAGE, routes, self._gauges, Metrics(), names=names, api_key=api_key)

    def stop(self) -> None:
        """End all answers, those that wait too, each with a word to whoever asked."""
        self.is_stopping.set()

    def _gauges(self) -> dict[str, float]:
        return {"trm_requests_waiting": max(0, self.num_asked - 1)}

    async def board(self, request: Request) -> Response:
        """What a board is made of."""
        game = self.model.game
        return json_response(
            {
                **{"model": name_of(self.model.path), "game": game.name, "side": game.side, "box": list(game.box)},
                **{"tokens": token_names(self.model), "needs_identifier": needs_identifier(self.model)},
                **{"steps": self.usual_steps, "most_steps": self.most_steps, "data": self.examples.folder},
            }
        )

    def names(self, request: Request) -> Response:
        """Of puzzles that can be asked for by name."""
        with missing_data():
            return json_response({split: self.examples.names(split) for split in ("test", "train")})

    def example(self, request: Request) -> Response:
        """A puzzle of the data set with its answer."""
        asked = validated(ExampleRequest, encoded(dict(request.query_params)))
        with missing_data():
            sample, name = self.examples.draw(asked.split, asked.number, asked.name)
        labels = [None if token == IGNORE_LABEL_ID else token for token in sample.labels.tolist()]
        found = {"split": asked.split, "number": sample.number, "name": name, "identifier": sample.identifier}
        return json_response(found | {"inputs": sample.inputs.tolist(), "labels": labels})

    async def solve(self, request: Request) -> ASGIApp:
        """The answer after every supervision step."""
        asked = validated(SolveRequest, await json_body(request, self.bounds.body_bytes))
        steps = asked.steps or self.usual_steps
        if steps > self.most_steps:
            raise RequestError(f"steps: {steps}; expected at most {self.most_steps}.", param="steps")
        sample = asked.sample(self.model)
        if self.num_asked > self.max_waiting:
            raise RequestError(f"{self.num_asked - 1} puzzles are waiting. Try again in a moment.", 503)
        is_gone, deadline = threading.Event(), time.monotonic() + self.bounds.answer_seconds

        def check() -> None:
            if self.is_stopping.is_set() or is_gone.is_set():
                raise RequestError("The server is stopping.", 503)
            if time.monotonic() > deadline:
                raise RequestError("The answer's time is over. Ask for fewer steps, or try again later.", 503)

        solving = asyncio.get_running_loop().run_in_executor(self.worker, self._solved, sample, steps, check)
        self.num_asked += 1
        solving.add_done_callback(self._has_ended)
        return Solving(solving, is_gone)

    def _has_ended(self, solving: "asyncio.Future[dict[str, Any]]") -> None:
        self.num_asked -= 1
        solving.exception()  # nobody asks for it where the client has gone

    def _solved(self, sample: Sample, steps: int, check: Callable[[], None]) -> dict[str, Any]:
        """What the model makes of a puzzle; `check` ends it between two steps."""
        check()
        answers, halting = [], []
        try:
            for answer, chance in follow(self.model.head, [sample], self.model.runtime, Effort(steps)):
                answers.append(answer[0])
                halting.append(float(chance[0]))
                check()
        except RuntimeError as error:  # such as memory that the device does not have
            traceback.print_exc()
            raise RequestError(f"The model failed: {str(error)[:200]}", 500) from None
        trace = Trace(sample, np.stack(answers), np.array(halting))
        return {
            "problem": question_problem(self.model.game, sample.inputs),
            "steps": [self._step(trace, number) for number in range(1, len(answers) + 1)],
        }

    def _step(self, trace: Trace, number: int) -> dict[str, Any]:
        board, halting = trace.answer(number, number - 1), float(trace.halting[number - 1])
        is_known = bool((trace.sample.labels != IGNORE_LABEL_ID).any())
        return {
            "tokens": board.tokens.tolist(),
            "halting": halting if math.isfinite(halting) else None,
            "changed": np.flatnonzero(board.changed).tolist(),
            "wrong": np.flatnonzero(board.wrong).tolist() if is_known else None,
            "valid": is_solution(self.model.game, board.given, board.tokens),
        }

    async def no_text(self, request: Request) -> Response:
        raise RequestError(
            f"{name_of(self.model.path)} solves puzzles and answers no text: ask /puzzles/solve, or serve a checkpoint "
            "of text.",
            404,
        )


@contextmanager
def missing_data() -> Iterator[None]:
    """What the data set does not hold is not found."""
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error), 404) from None


def needs_identifier(model: PuzzleModel) -> bool:
    """ARC's puzzles are told apart by embeddings of their own."""
    return model.game.name == "arc" and model.head.model.puzzle_emb is not None


def token_names(model: PuzzleModel) -> list[str]:
    """What each token stands for."""
    if model.game.name == "maze":
        names = MAZE_TOKENS
    elif model.game.name == "sudoku":
        names = {EMPTY_DIGIT: "."} | {EMPTY_DIGIT + digit: str(digit) for digit in range(1, model.game.side + 1)}
    else:
        names = {arc_grids.EOS: "end"} | {
            arc_grids.FIRST_COLOUR + colour: str(colour) for colour in range(arc_grids.NUM_COLOURS)
        }
    return [names.get(token, "") for token in range(model.metadata.vocab_size)]


class Solving:
    """The response to a puzzle that the model's thread solves meanwhile; who has gone is solved no longer."""

    def __init__(self, solving: "asyncio.Future[dict[str, Any]]", is_gone: threading.Event) -> None:
        self.solving, self.is_gone = solving, is_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(until_disconnected(receive))
        connection, has_begun = scope["state"]["connection"], False
        both: set[asyncio.Future[Any]] = {self.solving, leaving}
        try:
            while not self.solving.done():
                await asyncio.wait(both, timeout=ASK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return
                # Whether a client that sends no more still listens shows when something is sent to it: spaces, which JSON ignores.
                if connection.has_ended_its_side and not self.solving.done():
                    if not has_begun:
                        await send({"type": "http.response.start", "status": 200, "headers": JSON})
                    has_begun = True
                    await send({"type": "http.response.body", "body": b" ", "more_body": True})
            if has_begun and self.solving.exception() is not None:
                connection.abort()  # an answer without its end is known to be broken
            elif has_begun:
                await send({"type": "http.response.body", "body": encoded(self.solving.result())})
            else:
                await json_response(self.solving.result())(scope, receive, send)
        finally:
            self.is_gone.set()
            leaving.cancel()


async def until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def puzzle_service(
    stored: Checkpoint, options: ServeOptions, names: tuple[str, ...] = LOOPBACK, api_key: str | None = None
) -> PuzzleService:
    """The service of a checkpoint of puzzles; options that mean nothing to it are refused."""
    changed = [
        field.name
        for field in fields(options)
        if field.name not in USED_OPTIONS and getattr(options, field.name) != field.default
    ]
    if changed:
        raise ValueError(
            f"{stored.path} solves puzzles, of which {', '.join(changed)} says nothing: temperature, length, depth, exit "
            "rules, compiling and rows of a batch belong to text. Leave these flags out."
        )
    model = load_puzzle_model(stored, options.opening.device)
    return PuzzleService(model, names=names, api_key=api_key, max_waiting=options.max_waiting)
