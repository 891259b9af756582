"""Answers conversations: turns in, text out while it is generated; handles the window, stop texts and partial characters."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dataset.text.conversation import Turn
from dataset.tokenization.protocol import StreamDecoder
from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Token
from engine.generate.decode import Decoding
from engine.generate.options import ReplyOptions

Finish = Literal["eos", "stop", "length", "interrupted"]


@dataclass
class Reply:
    """One answer."""

    prompt_tokens: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish = "interrupted"  # until it ends otherwise
    seconds: float = 0.0
    fills_window: bool = False  # by its last token: where `finish` is "length", it was not max_tokens that cut it


def reply(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Turn]],
    options: ReplyOptions,
    on_text: Callable[[int, str], None] | None = None,
    on_token: Callable[[Token, str], None] | None = None,
) -> list[Reply]:
    """Answer all conversations in one batch.

    `on_text` gets the row and its text as soon as that is certain; `on_token` every token with the text that became
    certain by it. An interruption (Ctrl-C) ends all answers with what was generated so far.
    """
    rows = [Answering.of_turns(loaded, turns, options) for turns in conversations]
    return continued(loaded, rows, options, on_text, on_token)


def continued(
    loaded: LoadedModel,
    rows: Sequence["Answering"],
    options: ReplyOptions,
    on_text: Callable[[int, str], None] | None = None,
    on_token: Callable[[Token, str], None] | None = None,
) -> list[Reply]:
    """Continue all texts in one batch, as `reply` does."""
    decoding = Decoding(
        loaded.model,
        [row.ids for row in rows],
        options.decode,
        max_new_tokens=[row.room for row in rows],
        stop_ids=stop_ids_of(loaded, options),
        open_lengths=[row.open_length for row in rows],
    )
    try:
        for tokens in decoding:
            for token in tokens:
                row = rows[token.row]
                text = row.take(token)
                if row.has_ended:
                    decoding.stop(token.row)
                if text and on_text is not None:
                    on_text(token.row, text)
                if on_token is not None:
                    on_token(token, text)
    except KeyboardInterrupt:
        for number, row in enumerate(rows):
            if not row.has_ended and (rest := row.end()) and on_text is not None:
                on_text(number, rest)
    return [row.reply for row in rows]


def stop_ids_of(loaded: LoadedModel, options: ReplyOptions) -> frozenset[int]:
    """The ids that end an answer: the model's own, and those of special tokens that were named."""
    return loaded.stop_ids | {found for text in options.stop if (found := loaded.special_id(text)) is not None}


class Answering:
    """A text that is being continued: what of the answer is certain, and what ends it."""

    def __init__(
        self, loaded: LoadedModel, ids: list[int], room: int, options: ReplyOptions, open_length: int | None = None
    ) -> None:
        self.ids, self.room = ids, room
        self.open_length = len(ids) if open_length is None else open_length
        self.room_in_window = loaded.window + 1 - len(ids)
        self.reply = Reply(len(ids))
        self.decoder = StreamDecoder(loaded.tokenizer)
        self.end_ids, self.stop_ids = loaded.stop_ids, stop_ids_of(loaded, options)
        self.stops = [text for text in options.stop if loaded.special_id(text) is None]
        self.held = ""  # could be the beginning of a stop text
        self.has_ended = self.is_cut = False  # cut by a stop text, after which nothing is printed
        self.started = time.monotonic()

    @classmethod
    def of_text(
        cls, loaded: LoadedModel, ids: list[int], room: int, options: ReplyOptions, open_length: int | None = None
    ) -> "Answering":
        """A plain text that is continued as it stands, if need be within a character."""
        found = cls(loaded, ids, room, options, open_length)
        for token_id in ids:
            found.decoder.push(token_id)
        return found

    @classmethod
    def of_turns(cls, loaded: LoadedModel, turns: Sequence[Turn], options: ReplyOptions) -> "Answering":
        """One conversation that is being answered."""
        ids, room = fitted_prompt(loaded, turns, options)
        return cls(loaded, ids, room, options, open_length_of(loaded, turns, ids))

    def take(self, token: Token) -> str:
        """Add a token; returns the text that is certain now."""
        self.reply.tokens.append(token)
        self.reply.seconds = time.monotonic() - self.started
        text = ""
        if token.id in self.stop_ids:
            self._ends("eos" if token.id in self.end_ids else "stop")
        else:
            text = self._certain(self.decoder.push(token.id))
            if not self.has_ended and len(self.reply.tokens) >= self.room:
                self._ends("length")
                self.reply.fills_window = self.room == self.room_in_window
        return text + self.end() if self.has_ended else text

    def cut(self) -> str:
        """End here, as if there were room for no more; returns what was held back."""
        self._ends("length")
        return self.end()

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
            certain, self.held, self.is_cut = text[: min(found)], "", True
        else:
            keep = max((beginning_at_end(text, stop) for stop in self.stops), default=0)
            certain, self.held = text[: len(text) - keep], text[len(text) - keep :]
        self.reply.text += certain
        return certain

    def _ends(self, finish: Finish) -> None:
        self.reply.finish, self.has_ended = finish, True


def open_length_of(loaded: LoadedModel, turns: Sequence[Turn], ids: Sequence[int]) -> int:
    """How much of the turns' prompt `ids` sees itself in both directions, in models that were trained so: what stands
    before the first answer."""
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    return len(loaded.template.encode_prompt(turns[: answers[0]])) if answers else len(ids)


def beginning_at_end(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def fitted_prompt(loaded: LoadedModel, turns: Sequence[Turn], options: ReplyOptions) -> tuple[list[int], int]:
    """Ids of the prompt, and how many tokens the answer may have; the last of them takes no position."""
    if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
        raise ValueError("The message is empty: there is nothing to answer.")
    for turn in turns:
        if any("\ud800" <= letter <= "\udfff" for letter in turn.text):
            raise ValueError(f"The {turn.role}'s text {turn.text[:40]!r} is not whole Unicode. Give it as UTF-8.")
    wanted = options.max_tokens or max(1, loaded.window // 2)
    ids = loaded.template.encode_prompt(turns)
    if len(ids) > loaded.window and options.truncate:
        ids = _shortened(loaded, turns, wanted)
    return ids, room_for(loaded, len(ids), wanted)


def room_for(loaded: LoadedModel, prompt_length: int, wanted: int) -> int:
    """How many of the wanted tokens fit into the window behind the prompt, at least one; else an error."""
    excess = prompt_length - loaded.window
    if excess > 0:
        raise ValueError(
            f"The prompt takes {prompt_length} tokens, {excess} more than the window of {loaded.window}. "
            "Shorten it, or let it be shortened with --truncate."
        )
    return min(wanted, loaded.window + 1 - prompt_length)


def _shortened(loaded: LoadedModel, turns: Sequence[Turn], wanted: int) -> list[int]:
    """The prompt with the last message cut at its end, by as few characters as leave room for the wanted answer.

    Markers and earlier turns stay whole; of what these leave, the message keeps at least half.
    """

    def prompt(characters: int) -> list[int]:
        return loaded.template.encode_prompt([*turns[:-1], Turn("user", turns[-1].text[:characters])])

    around = len(prompt(0))
    left = loaded.window + 1 - around
    most = loaded.window + 1 - min(wanted, max(1, left // 2))
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
            f"{loaded.window}. Shorten the system message, or leave it out with --system-message ''."
        )
    return prompt(fits)
