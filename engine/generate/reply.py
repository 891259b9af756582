"""Answers to conversations: turns in, text out while it is said; knows windows, stop texts and half characters."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from dataset.text.conversation import Turn
from dataset.tokenization.protocol import StreamDecoder
from engine.generate.decode import DecodeOptions, Decoding, ExitRule, Mode, Token
from engine.generate.loaded_model import Speaker
from engine.generate.sampling import Sampling

Finish = Literal["eos", "stop", "length", "interrupted"]


@dataclass(frozen=True)
class ReplySettings:
    """How to answer; `max_tokens` None: half of the window, as far as the prompt leaves room."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()  # texts, or names of special tokens
    sampling: Sampling = field(default_factory=Sampling)
    mode: Mode = "exact"
    depth: int | None = None
    exit: ExitRule | None = None
    num_top: int = 0
    compile: bool = False
    truncate: bool = False  # shorten a message that leaves no room, instead of refusing it

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("A stop text is empty: expected at least one character, or the name of a special token.")


@dataclass
class Reply:
    """One answer."""

    prompt_tokens: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish = "interrupted"  # until it ends otherwise
    seconds: float = 0.0

    @property
    def mean_depth(self) -> float:
        return sum(token.depth for token in self.tokens) / max(1, len(self.tokens))


def reply(
    speaker: Speaker,
    conversations: Sequence[Sequence[Turn]],
    settings: ReplySettings,
    on_text: Callable[[int, str], None] = lambda row, text: None,
    on_token: Callable[[Token, str], None] = lambda token, text: None,
    turnstile: AbstractContextManager[Any] | None = None,
) -> list[Reply]:
    """Answer all conversations at once.

    `on_text` gets every row's text as soon as it is certain; `on_token` every token with the text that became certain
    by it. Nobody else passes the `turnstile` while a token is computed. An interruption (Ctrl-C) ends all answers with
    what was said so far.
    """
    rows = [Row(speaker, turns, settings) for turns in conversations]
    stop_ids = speaker.stop_ids | {found for text in settings.stop if (found := speaker.special_id(text)) is not None}
    options = DecodeOptions(
        max_new_tokens=[row.room for row in rows],
        stop_ids=stop_ids,
        sampling=settings.sampling,
        mode=settings.mode,
        depth=settings.depth,
        exit=settings.exit,
        num_top=settings.num_top,
        compile=settings.compile,
    )
    decoding = Decoding(
        speaker.model, [row.ids for row in rows], options, open_lengths=[row.open_length for row in rows]
    )
    started = time.monotonic()
    try:
        for tokens in _one_by_one(decoding, turnstile or nullcontext()):
            for token in tokens:
                row = rows[token.row]
                text = row.hear(token, stop_ids)
                if row.has_ended:
                    decoding.stop(token.row)
                    text += row.end()
                row.reply.seconds = time.monotonic() - started
                if text:
                    on_text(token.row, text)
                on_token(token, text)
    except KeyboardInterrupt:
        for number, row in enumerate(rows):
            if not row.has_ended and (rest := row.end()):
                on_text(number, rest)
    return [row.reply for row in rows]


def _one_by_one(decoding: Decoding, turnstile: AbstractContextManager[Any]) -> Iterator[list[Token]]:
    steps = iter(decoding)
    while True:
        with turnstile:
            tokens = next(steps, None)
        if tokens is None:
            return
        yield tokens


class Row:
    """One conversation that is being answered."""

    def __init__(self, speaker: Speaker, turns: Sequence[Turn], settings: ReplySettings) -> None:
        self.ids, self.room = fitted_prompt(speaker, turns, settings)
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        # Models whose prompts see themselves both ways were trained to see so what stands before the first answer.
        self.open_length = len(speaker.dialogue.encode_prompt(turns[: answers[0]]) if answers else self.ids)
        self.reply = Reply(len(self.ids))
        self.decoder = StreamDecoder(speaker.tokenizer)
        self.end_ids = speaker.stop_ids
        self.stops = [text for text in settings.stop if speaker.special_id(text) is None]
        self.held = ""  # could be the beginning of a stop text
        self.has_ended = self.is_cut = False  # cut by a stop text, behind which nothing is said

    def hear(self, token: Token, stop_ids: frozenset[int]) -> str:
        """Takes in a token; returns the text that is certain now."""
        self.reply.tokens.append(token)
        if token.id in stop_ids:
            self._ends("eos" if token.id in self.end_ids else "stop")
            return ""
        said = self._certain(self.decoder.push(token.id))
        if not self.has_ended and len(self.reply.tokens) >= self.room:
            self._ends("length")
        return said

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        self.has_ended = True
        if self.is_cut:
            return ""
        rest = self._certain(self.decoder.finish())
        self.reply.text += self.held
        rest, self.held = rest + self.held, ""
        return rest

    def _certain(self, new: str) -> str:
        """Text up to a stop text, or up to what could become one."""
        text = self.held + new
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self._ends("stop")
            said, self.held, self.is_cut = text[: min(found)], "", True
        else:
            keep = max((beginning_at_end(text, stop) for stop in self.stops), default=0)
            said, self.held = text[: len(text) - keep], text[len(text) - keep :]
        self.reply.text += said
        return said

    def _ends(self, finish: Finish) -> None:
        self.reply.finish, self.has_ended = finish, True


def beginning_at_end(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def fitted_prompt(speaker: Speaker, turns: Sequence[Turn], settings: ReplySettings) -> tuple[list[int], int]:
    """Ids of the prompt, and how many tokens the answer may have; the last of them takes no position."""
    if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
        raise ValueError("The message is empty: there is nothing to answer. Give a text with --message.")
    wanted = settings.max_tokens if settings.max_tokens is not None else max(1, speaker.window // 2)
    if wanted < 1:
        raise ValueError(f"{wanted} output tokens: expected at least 1.")
    ids = speaker.dialogue.encode_prompt(turns)
    if len(ids) > speaker.window and settings.truncate:
        ids = _shortened(speaker, turns, wanted)
    excess = len(ids) - speaker.window
    if excess > 0:
        raise ValueError(
            f"The prompt takes {len(ids)} tokens, {excess} more than the window of {speaker.window}. "
            "Shorten it, or let it be shortened with --truncate."
        )
    return ids, min(wanted, speaker.window + 1 - len(ids))


def _shortened(speaker: Speaker, turns: Sequence[Turn], wanted: int) -> list[int]:
    """The prompt with the last message cut at its end, by as few characters as leave room for the wanted answer.

    Markers and earlier turns stay whole; of what these leave, the message keeps at least half.
    """

    def prompt(characters: int) -> list[int]:
        return speaker.dialogue.encode_prompt([*turns[:-1], Turn("user", turns[-1].text[:characters])])

    around = len(prompt(0))
    left = speaker.window + 1 - around
    most = speaker.window + 1 - min(wanted, max(1, left // 2))
    fits, too_long = 0, len(turns[-1].text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(prompt(middle)) <= most:
            fits = middle
        else:
            too_long = middle
    if fits == 0:
        raise ValueError(
            f"Nothing of the message fits: what stands around it takes {around} tokens of the window of "
            f"{speaker.window}. Shorten the system message, or leave it out with --system-message ''."
        )
    return prompt(fits)
