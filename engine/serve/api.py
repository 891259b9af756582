"""The OpenAI-compatible format of the server: what a request may ask, and how conversations are answered."""

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field

from dataset.text.conversation import Turn
from dataset.tokenization.protocol import Tokenizer
from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Token
from engine.generate.exits import calibrated_options
from engine.generate.options import ExitRule, ReplyOptions, SamplingOptions
from engine.generate.reply import Reply
from engine.serve.gate import RequestError, Strict, validated

MOST_ALTERNATIVES = 20
LEAST_CHANCE = 1e-45  # of a token; JSON has no infinity for the logarithm of 0
FINISH = {"eos": "stop", "stop": "stop", "length": "length", "interrupted": "stop"}


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def turn(self) -> Turn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(BaseModel):
    include_usage: bool = False


class TextRequest(Strict):
    """What requests for text share. What would change an answer and is not offered is refused, not ignored."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    # Ours.
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    depth: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="supervision steps of every token; auto: by the checkpoint's calibrated exit rule"
    )
    # What clients send along and what changes no answer.
    user: str | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the number of its tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def reply_options(
        self, usual: ReplyOptions, loaded: LoadedModel, max_tokens: int | None, num_top: int
    ) -> ReplyOptions:
        """The server's usual options, changed by what was asked."""
        deepest = most_steps(usual, loaded)
        if isinstance(self.depth, int) and self.depth > deepest:
            raise RequestError(f"depth: expected at most {deepest} supervision steps, as trained.", param="depth")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 16 or not all(0 < len(text) <= 200 for text in stop):
            raise RequestError("stop: expected at most 16 texts of 1 to 200 characters", param="stop")
        default = usual.decode.sampling
        sampling = SamplingOptions(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=self.top_p or default.top_p,
            top_k=self.top_k or default.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed if self.seed is not None else int.from_bytes(uuid.uuid4().bytes[:4], "big"),
        )
        decode = replace(
            usual.decode,
            sampling=sampling,
            depth=self.depth or usual.decode.depth,
            exit=usual.decode.exit if self.depth is None else ExitRule(),  # a number is what every token takes
            num_top=num_top,
        )
        options = ReplyOptions(
            max_tokens=min(max_tokens, loaded.window) if max_tokens else None, stop=stop, decode=decode
        )
        return calibrated_options(options, loaded.path)


class ChatRequest(TextRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    # What clients send along and what changes no answer.
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    def turns(self) -> list[Turn]:
        if self.messages[-1].role != "user":
            raise RequestError("The last message must be the user's: it is what is answered.", param="messages")
        return [message.turn() for message in self.messages]

    def options(self, usual: ReplyOptions, loaded: LoadedModel) -> ReplyOptions:
        asked = self.max_completion_tokens or self.max_tokens or usual.max_tokens
        return self.reply_options(usual, loaded, asked, (self.top_logprobs or 0) if self.logprobs else 0)


AnyTextRequest = TypeVar("AnyTextRequest", bound=TextRequest)


def most_steps(usual: ReplyOptions, loaded: LoadedModel) -> int:
    """Supervision steps that a request may ask for."""
    depth = usual.decode.depth
    assert not isinstance(depth, str), "options_for() comes first"
    return max(loaded.model.config.halt_max_steps, depth or 1)


def parsed(kind: type[AnyTextRequest], content: bytes, model_name: str) -> AnyTextRequest:
    """The request, or a RequestError that names what is wrong with it."""
    request = validated(kind, content)
    if request.model not in (None, "", model_name):
        raise RequestError(f"There is no model {request.model[:100]!r} here, only {model_name!r}.", 404, "model")
    return request


class ChatFormat:
    """Writes the answer to a conversation, whole or in pieces."""

    def __init__(self, model_name: str, tokenizer: Tokenizer, request: ChatRequest) -> None:
        self.tokenizer, self.with_logprobs = tokenizer, bool(request.logprobs)
        self.common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}

    def whole(self, answers: Sequence[Reply]) -> dict[str, Any]:
        (answer,) = answers
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": FINISH[answer.finish],
        }
        return self.common | {"object": "chat.completion", "choices": [choice], "usage": usage(answers)}

    def first(self, index: int) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, [])

    def piece(self, index: int, text: str, token: Token) -> dict[str, Any]:
        return self._chunk({"content": text}, [token])

    def last(self, index: int, answer: Reply) -> dict[str, Any]:
        return self._chunk({}, [], FINISH[answer.finish])

    def usage(self, answers: Sequence[Reply]) -> dict[str, Any]:
        return self.common | {"object": "chat.completion.chunk", "choices": [], "usage": usage(answers)}

    def _chunk(self, delta: dict[str, str], tokens: list[Token], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": finish}
        return self.common | {"object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [self._token(token) for token in tokens], "refusal": None}

    def _token(self, token: Token) -> dict[str, Any]:
        """With `depth`, the supervision steps it took, which is ours beyond OpenAI's format."""
        others = [self._candidate(other, math.log(max(chance, LEAST_CHANCE))) for other, chance in token.top]
        return self._candidate(token.id, token.logprob) | {"top_logprobs": others, "depth": token.depth}

    def _candidate(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self.tokenizer.piece_bytes(token_id)
        return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}


def usage(answers: Sequence[Reply]) -> dict[str, int]:
    prompt, generated = sum(one.prompt_tokens for one in answers), sum(len(one.tokens) for one in answers)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
