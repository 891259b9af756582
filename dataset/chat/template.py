"""The chat template: from turns to token ids, the mask of supervised tokens, and the pieces of what is too long."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataset.text.conversation import EncodedConversation, Role, Turn
from dataset.tokenization.for_transformers import filled
from dataset.tokenization.special_tokens import ChatTokenizer

TEMPLATE = (  # named in data sets, so that two templates are never mixed
    "<|system|>{}<|endsystem|><|sep|><|user|>{}<|enduser|><|sep|><|assistant|>{}<|endassistant|><|endoftext|>"
)
MARKERS: dict[Role, tuple[str, str]] = {
    "system": ("<|system|>", "<|endsystem|>"),
    "user": ("<|user|>", "<|enduser|>"),
    "assistant": ("<|assistant|>", "<|endassistant|>"),
}
JINJA = """\
{%- set opening = OPENING -%}
{%- set closing = CLOSING -%}
{%- for message in messages -%}
{%- if not loop.first -%}{{- "<|sep|>" -}}{%- endif -%}
{{- opening[message["role"]] -}}
{%- if message["content"] -%}{{- BEFORE + message["content"] -}}{%- endif -%}
{{- closing[message["role"]] -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if messages -%}{{- "<|sep|>" -}}{%- endif -%}
{{- "<|assistant|>" -}}
{%- elif messages -%}
{{- "<|endoftext|>" -}}
{%- endif -%}
"""
MIN_TOKENS = 8  # six markers, a token of a question, a token of its answer
GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"

Positions = NDArray[np.int64]  # of tokens of a whole conversation


@dataclass(frozen=True)
class Block:
    """The place of a turn in its conversation: separator and marker, text, marker."""

    role: Role
    start: int
    text_start: int
    text_stop: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A whole conversation."""

    ids: NDArray[np.int32]
    is_trained: NDArray[np.bool_]
    blocks: list[Block]


class ChatEncoder:
    """Encodes conversations by the template, at most `max_tokens` each.

    Turns are encoded as they come: none is merged with its neighbour of the same role, moved or left out, and an empty
    one is its two markers. What is supervised: with loss_on="assistant" the text of the answers that `Turn.is_trained`
    marks, their <|endassistant|>, and <|endoftext|> after such an answer at the end; with "all" every token, also of
    turns that are not marked. What follows the last supervised token is left out.

    What becomes of a conversation that is longer:

    "truncate" cuts it on the right, and back to the end of the last supervised answer that is whole, so that it ends
    as a reply shall end. Where no answer is whole, the beginning of one is kept, without an end that is not its own.
    "split" makes several of it, between an answer and the next question, each with the system turns from its
    beginning; only the last of them says <|endoftext|>. An exchange that does not fit alone becomes a conversation
    that is cut: the texts before its answer are shortened, to half of `max_tokens` if they must, then the answer.
    "drop" leaves it out.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        max_tokens: int | None = None,
        *,
        loss_on: Literal["assistant", "all"] = "assistant",
        long: Literal["truncate", "split", "drop"] = "truncate",
    ) -> None:
        if max_tokens is not None and max_tokens < MIN_TOKENS:
            raise ValueError(
                f"max_tokens={max_tokens} has no room for a question and its answer with their markers. Take "
                f"{MIN_TOKENS} or more."
            )
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._loss_on = loss_on
        self._long = long
        self._end_of_answer = tokenizer.special("<|endassistant|>")
        self.stop_ids = frozenset({self._end_of_answer, tokenizer.eos_id})

    def encode(self, turns: Sequence[Turn]) -> list[EncodedConversation]:
        """The pieces of a conversation: one, several if it is split, none if nothing is left to train."""
        return self.encode_counted(turns)[0]

    def encode_counted(self, turns: Sequence[Turn]) -> tuple[list[EncodedConversation], int]:
        """`encode`, and how many tokens that would be supervised in the whole conversation are in no piece."""
        whole = self._lay_out(turns)
        trained = np.flatnonzero(whole.is_trained)
        used = int(trained[-1]) + 1 if len(trained) else 0
        if self._max_tokens is None or used <= self._max_tokens:
            cuts = [(np.arange(used), False)]
        elif self._long == "split":
            cuts = self._split(whole, self._max_tokens)
        else:
            cuts = [(np.arange(used), True)] if self._long == "truncate" else []
        pieces, is_kept = [], np.zeros(len(whole.ids), dtype=np.bool_)
        for positions, is_cut in cuts:
            kept = self._cut(whole, positions)
            if len(kept):
                is_kept[kept] = True
                pieces.append(EncodedConversation(whole.ids[kept], whole.is_trained[kept], is_truncated=is_cut))
        return pieces, int((whole.is_trained & ~is_kept).sum())

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The ids before the next answer: those with which a training conversation that has this answer begins."""
        opening = [self._tokenizer.special(name) for name in (["<|sep|>"] if turns else []) + ["<|assistant|>"]]
        whole = self._lay_out(turns)
        return [*whole.ids[: len(whole.ids) - 1 if turns else 0].tolist(), *opening]

    def jinja(self) -> str:
        """The template for transformers, beside a tokenizer of dataset/tokenization/for_transformers.py."""
        opening, closing = ({role: pair[at] for role, pair in MARKERS.items()} for at in (0, 1))
        return filled(JINJA, {"OPENING": opening, "CLOSING": closing, "BEFORE": self._tokenizer.before})

    def _lay_out(self, turns: Sequence[Turn]) -> Layout:
        special, is_all = self._tokenizer.special, self._loss_on == "all"
        ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        trained: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
        blocks: list[Block] = []
        stop = 0
        for index, text in enumerate(self._tokenizer.encode_batch([turn.text for turn in turns])):
            turn = turns[index]
            opening, closing = map(special, MARKERS[turn.role])
            before = [special("<|sep|>"), opening] if index else [opening]
            after = [closing, self._tokenizer.eos_id] if index == len(turns) - 1 else [closing]
            is_answer = is_all or (turn.role == "assistant" and turn.is_trained)
            ids += [np.array(before, dtype=np.int32), text, np.array(after, dtype=np.int32)]
            trained += [np.full(len(before), is_all), np.full(len(text) + len(after), is_answer)]
            text_start, start = stop + len(before), stop
            stop = text_start + len(text) + len(after)
            blocks.append(Block(turn.role, start, text_start, text_start + len(text), stop))
        return Layout(np.concatenate(ids), np.concatenate(trained), blocks)

    def _cut(self, whole: Layout, positions: Positions) -> Positions:
        """These positions up to the last trained one; if too many, up to the last end of an answer if there is one."""
        fitting = positions[: self._max_tokens]
        trained = np.flatnonzero(whole.is_trained[fitting])
        ends = trained[whole.ids[fitting[trained]] == self._end_of_answer]
        last = ends if len(fitting) < len(positions) and len(ends) else trained
        return fitting[: last[-1] + 1] if len(last) else fitting[:0]

    def _split(self, whole: Layout, max_tokens: int) -> list[tuple[Positions, bool]]:
        """The positions of every piece, and whether it has to be cut."""
        system, exchanges = _exchanges(whole.blocks)
        head = np.arange(system[-1].stop if system else 0)
        pieces: list[tuple[Positions, bool]] = []
        is_open = False  # whether the last piece may have room
        for exchange in exchanges:
            body = np.arange(exchange[0].start, exchange[-1].stop)
            alone = np.concatenate([head, body if system or exchange[0].start == 0 else body[1:]])  # no separator first
            if is_open and len(pieces[-1][0]) + len(body) <= max_tokens:
                pieces[-1] = (np.concatenate([pieces[-1][0], body]), False)
            else:
                is_open = len(alone) <= max_tokens
                pieces.append((alone if is_open else _shortened(alone, [*system, *exchange], max_tokens), not is_open))
        return pieces


def _exchanges(blocks: Sequence[Block]) -> tuple[list[Block], list[list[Block]]]:
    """The system turns at the beginning; then questions with their answers, a new one where a question follows."""
    num_system = next((index for index, block in enumerate(blocks) if block.role != "system"), len(blocks))
    exchanges: list[list[Block]] = []
    for is_answer, group in groupby(blocks[num_system:], lambda block: block.role == "assistant"):
        if is_answer and exchanges:
            exchanges[-1].extend(group)
        else:
            exchanges.append(list(group))
    if not exchanges:
        return [], [list(blocks)]
    return list(blocks[:num_system]), exchanges


def _shortened(positions: Positions, blocks: Sequence[Block], max_tokens: int) -> Positions:
    """Without the ends of the texts before the first answer, each in proportion, so that the answer has room."""
    questions = [block for block in blocks if block.role != "assistant"]
    answers = [block for block in blocks if block.role == "assistant"]
    size = int((positions < answers[0].text_start).sum()) if answers else len(positions)
    excess = size - max(max_tokens - (len(positions) - size), max_tokens // 2)
    lengths = [block.text_stop - block.text_start for block in questions]
    wanted = max(sum(lengths) - excess, 0)
    dropped = [
        np.arange(block.text_start + length * wanted // sum(lengths), block.text_stop)
        for block, length in zip(questions, lengths, strict=True)
        if length and excess > 0
    ]
    return np.setdiff1d(positions, np.concatenate(dropped)) if dropped else positions


def coloured(encoded: EncodedConversation, tokenizer: ChatTokenizer) -> str:
    """The text of a sample for a terminal: what is supervised green, the rest grey, control characters as pictures."""
    names = {token_id: name.encode() for name, token_id in tokenizer.special_ids.items()}
    tokens = zip(encoded.ids.tolist(), encoded.is_trained.tolist(), strict=True)
    parts = []
    for is_trained, run in groupby(tokens, lambda token: token[1]):
        text = b"".join(names.get(token_id) or tokenizer.piece_bytes(token_id) for token_id, _ in run)
        shown = "".join(map(_visible, text.decode(errors="replace")))
        parts.append(f"{GREEN if is_trained else GREY}{shown}{RESET}")
    return "".join(parts)


def _visible(letter: str) -> str:
    """A message must not steer the terminal it is shown in."""
    if letter in "\n\t" or unicodedata.category(letter) != "Cc":
        return letter
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\ufffd"
