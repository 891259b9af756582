"""The endpoint of plain texts, which are continued as they stand, or told how likely they are: requests and answers."""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from dataset.tokenization.protocol import StreamDecoder, Tokenizer
from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Token
from engine.generate.options import ReplyOptions
from engine.generate.reply import Reply, room_for
from engine.generate.score import ScoredToken
from engine.serve.api import FINISH, LEAST_CHANCE, MOST_ALTERNATIVES, TextRequest, usage
from engine.serve.gate import RequestError

MOST_PROMPTS = 128
USUAL_TOKENS = 16  # as OpenAI has it


class CompletionRequest(TextRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool = False
    best_of: Literal[1] | None = 1

    def prompts(self, loaded: LoadedModel) -> list[list[int]]:
        """The ids of each text, which have room in the window."""
        given: list[Any] = [self.prompt] if isinstance(self.prompt, str) or self._is_ids() else list(self.prompt)
        if not 1 <= len(given) <= MOST_PROMPTS:
            raise RequestError(f"prompt: {len(given)} texts; expected 1 to {MOST_PROMPTS}.", param="prompt")
        found = [loaded.tokenizer.encode(text) if isinstance(text, str) else text for text in given]
        for ids in found:
            if not ids or not 0 <= min(ids) <= max(ids) < loaded.model.config.vocab_size:
                vocab_size = loaded.model.config.vocab_size
                raise RequestError(
                    f"prompt: expected at least one id, each from 0 to {vocab_size - 1}.", param="prompt"
                )
        return found

    def _is_ids(self) -> bool:
        return isinstance(self.prompt, list) and bool(self.prompt) and isinstance(self.prompt[0], int)

    @property
    def wants_score(self) -> bool:
        """Whether the prompts' own tokens are told with their probabilities."""
        return self.echo and self.logprobs is not None

    def options(self, usual: ReplyOptions, loaded: LoadedModel) -> ReplyOptions:
        return self.reply_options(usual, loaded, self.max_tokens, self.logprobs or 0)

    def room(self, ids: Sequence[int], loaded: LoadedModel) -> int:
        """How many tokens the answer may have."""
        wanted = USUAL_TOKENS if self.max_tokens is None else self.max_tokens
        return room_for(loaded, len(ids), wanted) if wanted else 0


class Mark(NamedTuple):
    """What is told of one token of a text."""

    id: int
    logprob: float | None  # none of the first, which nothing stands before
    top: Sequence[tuple[int, float]]  # the likeliest ids and their log-probabilities


class CompletionFormat:
    """Writes the continuations of texts, whole or in pieces; with echo each begins with its text.

    `scores` of a text are of its tokens behind the first.
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Tokenizer,
        request: CompletionRequest,
        prompts: Sequence[Sequence[int]],
        scores: Sequence[Sequence[ScoredToken]],
    ) -> None:
        self.tokenizer, self.num_top = tokenizer, request.logprobs
        self.common = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        self.common |= {"created": int(time.time()), "model": model_name}  # type: ignore[dict-item]
        self.echoed = [tokenizer.decode(ids) if request.echo else "" for ids in prompts]
        self.scored = [
            [Mark(ids[0], None, ()), *map(marked, found)] for ids, found in zip(prompts, scores, strict=False)
        ]
        self.said = list(map(len, self.echoed))  # characters of each text so far

    def whole(self, answers: Sequence[Reply]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            marks = [*(self.scored[index] if self.scored else ()), *map(marked, answer.tokens)]
            text = self.echoed[index] + answer.text
            choices.append(self._choice(index, text, marks, 0, FINISH[answer.finish]))
        return self.common | {"choices": choices, "usage": usage(answers)}

    def first(self, index: int) -> dict[str, Any] | None:
        if not self.echoed[index]:
            return None
        marks = self.scored[index] if self.scored else []
        return self.common | {"choices": [self._choice(index, self.echoed[index], marks, 0)]}

    def piece(self, index: int, text: str, token: Token) -> dict[str, Any]:
        start = self.said[index]
        self.said[index] += len(text)
        return self.common | {"choices": [self._choice(index, text, [marked(token)], start)]}

    def last(self, index: int, answer: Reply) -> dict[str, Any]:
        return self.common | {"choices": [self._choice(index, "", [], self.said[index], FINISH[answer.finish])]}

    def usage(self, answers: Sequence[Reply]) -> dict[str, Any]:
        return self.common | {"choices": [], "usage": usage(answers)}

    def _choice(
        self, index: int, text: str, marks: Sequence[Mark], start: int, finish: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        if self.num_top is not None:
            decoder, offsets = StreamDecoder(self.tokenizer), [start]
            for mark in marks:
                offsets.append(offsets[-1] + len(decoder.push(mark.id)))
            choice["logprobs"] = {
                "tokens": [self._name(mark.id) for mark in marks],
                "token_logprobs": [mark.logprob for mark in marks],
                "top_logprobs": [self._alternatives(mark) for mark in marks],
                "text_offset": offsets[:-1],
            }
        return choice

    def _alternatives(self, mark: Mark) -> dict[str, float] | None:
        """The likeliest tokens and this one."""
        if mark.logprob is None:
            return None
        return {self._name(other): logprob for other, logprob in mark.top} | {self._name(mark.id): mark.logprob}

    def _name(self, token_id: int) -> str:
        """The token's text; of a part of a character, or a special token, what tells it from the others."""
        piece = self.tokenizer.piece_bytes(token_id)
        try:
            return piece.decode() or f"<{token_id}>"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def marked(token: Token | ScoredToken) -> Mark:
    top = [(other, math.log(max(chance, LEAST_CHANCE))) for other, chance in token.top]
    return Mark(token.id, token.logprob, top)
