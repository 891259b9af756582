"""The template of plain markers: from turns to token ids and the mask of trained tokens; a prompt becomes ids here.

Conversations with special tokens are written by dataset/chat/template.py.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataset.text.conversation import EncodedConversation, Role, Turn
from dataset.tokenization.for_transformers import CONTINUE, START, filled
from dataset.tokenization.protocol import Tokenizer

MARKERS: dict[Role, str] = {"system": "[SYSTEM]\n", "user": "[USER]\n", "assistant": "[ASSISTANT]\n"}

JINJA = """\
{%- set marker = MARKERS -%}
{{- BEGIN -}}
{%- for message in messages -%}
{{- marker[message["role"]] -}}
{%- if message["content"] -%}{{- START + message["content"] -}}{%- endif -%}
{%- if message["role"] == "assistant" -%}{{- eos_token -}}{%- else -%}{{- END -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- marker["assistant"] -}}{%- endif -%}
"""


class ConversationEncoder:
    """Writes turns as `[SYSTEM]\\n…\\n[USER]\\n…\\n[ASSISTANT]\\n…</s>`.

    Markers and texts are encoded apart, so that a boundary is the same tokens in training and in generation, and a
    text that looks like a marker ends no turn. Every answer ends with the end-of-sequence token; other turns end with
    a new line. A conversation longer than `max_tokens` keeps its left part (truncate="right"), or first loses the end
    of its prompt, so that the answer has room (truncate="prompt"). With template="plain" there are the texts alone, and
    the token that ends an answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int | None = None,
        truncate: Literal["right", "prompt"] = "right",
        template: Literal["markers", "plain"] = "markers",
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._truncate = truncate
        is_plain = template == "plain"
        self._is_plain = is_plain
        self._begin = _ids([] if is_plain or tokenizer.bos_id is None else [tokenizer.bos_id])
        self._end_of_answer = _ids([tokenizer.eos_id])
        self._end_of_turn = _ids([] if is_plain else _continuation(tokenizer, "\n"))
        self._markers = {role: _ids([] if is_plain else tokenizer.encode(text)) for role, text in MARKERS.items()}

    def encode(self, turns: Sequence[Turn]) -> EncodedConversation | None:
        """None if truncation leaves nothing to train."""
        return self.encode_batch([turns])[0]

    def encode_batch(self, conversations: Sequence[Sequence[Turn]]) -> list[EncodedConversation | None]:
        """The same as `encode` of each conversation, faster."""
        texts = iter(self._tokenizer.encode_batch([turn.text for turns in conversations for turn in turns]))
        return [self._assemble(turns, [next(texts) for _ in turns]) for turns in conversations]

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The ids before the next answer: those with which a training conversation that has this answer begins."""
        texts = self._tokenizer.encode_batch([turn.text for turn in turns])
        parts, _ = self._parts(turns, texts)
        return np.concatenate([*parts, self._markers["assistant"]]).tolist()

    def jinja(self) -> str:
        """The template for transformers, beside a tokenizer of dataset/tokenization/for_transformers.py."""
        if self._is_plain:
            return filled(JINJA, {"MARKERS": dict.fromkeys(MARKERS, ""), "BEGIN": "", "START": START, "END": ""})
        markers = {role: START + text for role, text in MARKERS.items()}
        template = JINJA.replace("BEGIN", "bos_token") if len(self._begin) else JINJA
        return filled(template, {"MARKERS": markers, "BEGIN": "", "START": START, "END": CONTINUE + "\n"})

    def _parts(
        self, turns: Sequence[Turn], texts: Sequence[NDArray[np.int32]]
    ) -> tuple[list[NDArray[np.int32]], list[bool]]:
        parts, trained = [self._begin], [False]
        for turn, text in zip(turns, texts, strict=True):
            end = self._end_of_answer if turn.role == "assistant" else self._end_of_turn
            parts += [self._markers[turn.role], text, end]
            trained += [False, turn.is_trained, turn.is_trained]
        return parts, trained

    def _assemble(self, turns: Sequence[Turn], texts: Sequence[NDArray[np.int32]]) -> EncodedConversation | None:
        parts, trained = self._parts(turns, texts)
        if not any(trained):
            return None
        used = len(trained) - trained[::-1].index(True)  # what follows the last trained token teaches nothing
        ids = np.concatenate(parts[:used])
        is_trained = np.repeat(np.array(trained[:used]), np.array([len(part) for part in parts[:used]]))
        excess = 0 if self._max_tokens is None else len(ids) - self._max_tokens
        if excess <= 0:
            return EncodedConversation(ids, is_trained, is_truncated=False)
        if self._truncate == "prompt":
            kept = _without_end_of_prompt(parts[:used], trained.index(True), excess)
            ids, is_trained = ids[kept], is_trained[kept]
        ids, is_trained = ids[: self._max_tokens], is_trained[: self._max_tokens]
        return EncodedConversation(ids, is_trained, is_truncated=True) if is_trained.any() else None


def _without_end_of_prompt(parts: list[NDArray[np.int32]], answer: int, excess: int) -> NDArray[np.bool_]:
    """A mask that drops the last `excess` tokens, or all there are, of the texts before part number `answer`."""
    kept = [np.ones(len(part), dtype=np.bool_) for part in parts]
    for index in range(answer - 3, 0, -3):  # a beginning, then marker, text, end of every turn
        removed = min(excess, len(parts[index]))
        kept[index][len(parts[index]) - removed :] = False
        excess -= removed
    return np.concatenate(kept)


def _ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` after other text: without the space that some tokenizers put before a beginning."""
    before, whole = tokenizer.encode("a"), tokenizer.encode(f"a{text}")
    return whole[len(before) :] if whole[: len(before)] == before else tokenizer.encode(text)
