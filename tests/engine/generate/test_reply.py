"""Replies: their text as it streams, what ends them, and what fits the window."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.text.conversation import Turn
from engine.build.text_checkpoint import load_model
from engine.generate import reply as reply_room
from engine.generate.batch import Token
from engine.generate.options import DecodeOptions, OpenOptions, ReplyOptions, SamplingOptions
from engine.generate.reply import beginning_at_end, fitted_prompt, reply
from tests.text_runs import text_flags, train_text, write_corpus

QUESTION = [Turn("user", "What is 2 plus 3?")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reply")
    data = write_corpus(folder / "data")
    ended = train_text(text_flags(data, folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return load_model(OpenOptions(str(folder / "run"), device="cpu"))


class Scripted:
    """A decoding that says given texts, and never stops by itself."""

    def __init__(self, loaded, texts, end=False, interrupted_after=None):
        self.ids = [loaded.tokenizer.encode(text) + ([loaded.tokenizer.eos_id] if end else []) for text in texts]
        self.stopped, self.interrupted_after = set(), interrupted_after

    def __call__(self, model, prompts, options, max_new_tokens, stop_ids, open_lengths):
        self.stop_ids, self.prompts, self.open_lengths = stop_ids, prompts, open_lengths
        return self

    def stop(self, row):
        self.stopped.add(row)

    def __iter__(self):
        for place in range(max(map(len, self.ids))):
            if place == self.interrupted_after:
                raise KeyboardInterrupt
            rows = [row for row in range(len(self.ids)) if row not in self.stopped and place < len(self.ids[row])]
            if not rows:
                return
            yield [Token(row, self.ids[row][place], -0.5, 2, ()) for row in rows]


def sampled(temperature, seed=0, **options):
    return ReplyOptions(decode=DecodeOptions(SamplingOptions(temperature=temperature, seed=seed)), **options)


def say(monkeypatch, loaded, texts, options=None, **script):
    """What the replies are when the model says these texts, and the pieces in which they came."""
    fake = Scripted(loaded, texts, **script)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    pieces = [[] for _ in texts]
    answers = reply(
        loaded,
        [QUESTION for _ in texts],
        options or ReplyOptions(),
        on_text=lambda row, text: pieces[row].append(text),
    )
    assert [answer.text for answer in answers] == ["".join(row) for row in pieces]
    return answers, pieces, fake


def test_a_reply_ends_with_the_end_token_which_is_not_said(monkeypatch, loaded):
    (answer, other), pieces, _ = say(monkeypatch, loaded, ["five apples", "six"], end=True)
    assert answer.text == "five apples" and answer.finish == other.finish == "eos"
    assert len(pieces[0]) > 2 and answer.tokens[-1].id == loaded.tokenizer.eos_id
    assert {token.depth for token in answer.tokens} == {2}


def test_half_a_character_is_never_said(monkeypatch, loaded):
    text = "a ☃🦔é b"  # snowman and hedgehog come as single bytes from this small tokenizer
    (answer,), (pieces,), _ = say(monkeypatch, loaded, [text], end=True)
    assert answer.text == text and "\ufffd" not in "".join(pieces)
    assert len(answer.tokens) > len(pieces) > 2


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("seven", "five six "), ("six s", "five "), ("five", ""), ("eight", None), ("nine ten", None)],
)
def test_a_stop_text_ends_the_reply_and_no_part_of_it_is_said(monkeypatch, loaded, stop, expected):
    options = ReplyOptions(stop=(stop,))
    (answer, other), pieces, fake = say(monkeypatch, loaded, ["five six seven nine", "no number"], options, end=True)
    if expected is None:
        assert answer.text == "five six seven nine" and answer.finish == "eos"
    else:
        assert answer.text == expected and answer.finish == "stop" and 0 in fake.stopped
    assert other.text == "no number" and other.finish == "eos"


@given(text=st.text("ab", max_size=12), stop=st.text("ab", min_size=1, max_size=4))
def test_what_is_held_back_is_the_longest_beginning_of_a_stop_text(text, stop):
    size = beginning_at_end(text, stop)
    fitting = [n for n in range(min(len(stop) - 1, len(text)) + 1) if text[len(text) - n :] == stop[:n]]
    assert size == max(fitting)


def test_a_special_token_can_be_named_as_a_stop(monkeypatch, loaded):
    _, _, fake = say(monkeypatch, loaded, ["x"], ReplyOptions(stop=("</s>", "y")), end=True)
    assert fake.stop_ids == {loaded.tokenizer.eos_id}


def test_a_named_token_other_than_the_end_stops_and_what_was_held_back_is_said(monkeypatch, loaded):
    other = replace(loaded, stop_ids=frozenset())  # of this model </s> ends no answer
    (answer,), _, _ = say(monkeypatch, other, ["five s"], ReplyOptions(stop=("</s>", "six")), end=True)
    assert answer.finish == "stop" and answer.text == "five s"


class WidePieces:
    """A byte-level tokenizer, one of whose tokens ends within a character."""

    eos_id, has_space_prefix, special_ids = 1, False, {}

    def piece_bytes(self, token_id):
        return b"five!\xe2\x98"


def test_nothing_is_said_behind_a_stop_text_not_even_half_a_character(monkeypatch, loaded):
    fake = Scripted(loaded, ["x"])
    fake.ids = [[0]]
    monkeypatch.setattr(reply_room, "Decoding", fake)
    (cut,) = reply(replace(loaded, tokenizer=WidePieces()), [QUESTION], ReplyOptions(stop=("!",)))
    assert cut.text == "five" and cut.finish == "stop"


def test_an_interruption_keeps_what_was_said(monkeypatch, loaded):
    (answer,), _, _ = say(monkeypatch, loaded, ["five six seven"], ReplyOptions(stop=("s!",)), interrupted_after=3)
    assert answer.finish == "interrupted" and "five six seven".startswith(answer.text) and answer.text


def test_a_reply_has_half_of_the_window_unless_told(loaded):
    (short,) = reply(loaded, [QUESTION], ReplyOptions(max_tokens=3))
    (usual,) = reply(loaded, [QUESTION], sampled(3.0))
    assert len(short.tokens) <= 3 and len(usual.tokens) <= loaded.window // 2
    assert {short.finish, usual.finish} <= {"length", "eos"}


def test_a_reply_that_was_cut_knows_whether_the_window_was_full(monkeypatch, loaded):
    room = loaded.window + 1 - len(loaded.template.encode_prompt(QUESTION))
    for wanted, is_full in ((3, False), (room - 1, False), (room, True), (5000, True)):
        monkeypatch.setattr(reply_room, "Decoding", Scripted(loaded, ["five six seven " * 40]))
        (answer,) = reply(loaded, [QUESTION], ReplyOptions(max_tokens=wanted))
        assert (answer.finish, answer.fills_window) == ("length", is_full)


def test_a_prompt_that_does_not_fit_is_refused_by_how_much_or_shortened(monkeypatch, loaded):
    long = [Turn("system", "be kind"), Turn("user", "word " * 100)]
    ids = loaded.template.encode_prompt(long)
    excess = len(ids) - loaded.window
    with pytest.raises(ValueError, match=rf"{len(ids)}.* {excess} .* {loaded.window}.*--truncate"):
        reply(loaded, [long], ReplyOptions())
    fake = Scripted(loaded, ["x"], end=True)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    reply(loaded, [long], ReplyOptions(truncate=True, max_tokens=10))
    (prompt,) = fake.prompts
    assert loaded.window - 15 < len(prompt) <= loaded.window + 1 - 10
    end = loaded.template.encode_prompt([Turn("user", "x")])[-4:]
    assert prompt[-4:] == end  # the markers are whole
    with pytest.raises(ValueError, match="--system-message"):
        reply(loaded, [[Turn("system", "word " * 100), *QUESTION]], ReplyOptions(truncate=True))


@pytest.mark.parametrize("wanted", [None, 60, 72, 5000])
def test_a_shortened_message_keeps_half_of_the_room_however_long_the_answer_may_be(loaded, wanted):
    def kept(text):
        return loaded.template.encode_prompt([Turn("user", text)])

    ids, room = fitted_prompt(loaded, [Turn("user", "word " * 100)], ReplyOptions(max_tokens=wanted, truncate=True))
    left = loaded.window + 1 - len(kept(""))
    assert len(ids) - len(kept("")) >= left // 2 - 2 and room + len(ids) <= loaded.window + 1
    assert room >= left // 2 - 2


@pytest.mark.parametrize("turns", [[], [Turn("user", "  ")], [Turn("assistant", "yes")]])
def test_nothing_to_answer_is_refused(loaded, turns):
    with pytest.raises(ValueError, match="message is empty"):
        reply(loaded, [turns], ReplyOptions())


@pytest.mark.parametrize("role", ["system", "user"])
def test_half_a_character_in_a_prompt_is_refused_with_its_place(loaded, role):
    turns = {"system": "be kind", "user": "hello"} | {role: "half \udcff"}
    with pytest.raises(ValueError, match=f"{role}.*udcff.*UTF-8"):
        reply(loaded, [[Turn(role, text) for role, text in turns.items()]], ReplyOptions())


def test_the_same_seed_says_the_same_alone_or_in_a_batch(loaded):
    options = sampled(1.5, seed=4, max_tokens=12)
    questions = [[Turn("user", text)] for text in ("What is 2 plus 3?", "Say it", "Which day comes after Monday?")]
    together = reply(loaded, questions, options)
    alone = [reply(loaded, [question], options)[0] for question in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    other = reply(loaded, questions, sampled(1.5, seed=5, max_tokens=12))
    assert [a.text for a in together] != [a.text for a in other]


def test_earlier_answers_are_no_part_of_what_sees_itself_both_ways(monkeypatch, loaded):
    fake = Scripted(loaded, ["x"], end=True)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    turns = [*QUESTION, Turn("assistant", "5"), Turn("user", "and 3 plus 3?")]
    reply(loaded, [turns], ReplyOptions())
    assert fake.open_lengths == [len(loaded.template.encode_prompt(QUESTION))] < [len(fake.prompts[0])]
