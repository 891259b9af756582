"""The conversation in a terminal: what is remembered, what every command does, and how it ends."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from engine.generate import session as room
from engine.generate.options import SEEDS, DecodeOptions, ReplyOptions, SamplingOptions
from engine.generate.reply import Reply
from engine.generate.session import ChatSession
from engine.generate.terminal import converse, print_end

WINDOW = 40


class CountingTemplate:
    """One token a word, and one for the marker of each turn."""

    def encode_prompt(self, turns):
        return [0] * (sum(1 + len(turn.text.split()) for turn in turns) + 1)


@pytest.fixture
def session(monkeypatch):
    """A session whose model repeats the last message in capitals; what it heard is kept in `heard`."""
    loaded = SimpleNamespace(template=CountingTemplate(), window=WINDOW)
    made = ChatSession(loaded, ReplyOptions(8, decode=DecodeOptions(SamplingOptions(seed=5))))
    made.heard, made.seeds = [], []

    def answer(loaded, conversations, options, on_text):
        (turns,) = conversations
        made.heard.append(turns)
        made.seeds.append(options.decode.sampling.seed)
        text = turns[-1].text.upper()
        on_text(0, text)
        return [Reply(1, text, [], "eos", 0.5)]

    monkeypatch.setattr(room, "reply", answer)
    return made


def talk(session, *lines):
    converse(session, lines)


def roles(turns):
    return [(turn.role, turn.text) for turn in turns]


def test_every_message_is_heard_with_what_was_said_before(session, capsys):
    talk(session, "one", "", "two")
    assert roles(session.heard[1]) == [("user", "one"), ("assistant", "ONE"), ("user", "two")]
    assert capsys.readouterr().out == "ONE\nTWO\n"
    assert session.seeds == [5, 6]


def test_a_full_window_loses_the_oldest_turns_but_not_the_system_prompt(session, capsys):
    session.system = "be kind"
    talk(session, "a b c d e", "f g h i j", "k l m n o")
    last = roles(session.heard[-1])
    assert last[0] == ("system", "be kind") and last[-1] == ("user", "k l m n o")
    assert ("user", "a b c d e") not in last and ("user", "f g h i j") in last
    assert "oldest 2 turns" in capsys.readouterr().err
    assert len(session.turns) == 6  # the conversation itself is kept


def test_reset_retry_and_system(session):
    talk(session, "one", "/retry", "/system be brief", "two", "/reset", "three", "/system", "four")
    heard = [roles(turns) for turns in session.heard]
    assert heard[1] == [("user", "one")] and session.seeds[:2] == [5, 6]
    assert heard[2] == [("system", "be brief"), ("user", "two")]
    assert heard[3] == [("system", "be brief"), ("user", "three")]
    assert heard[4] == [("user", "four")]


def test_a_saved_conversation_goes_on_after_it_is_loaded(session, tmp_path, capsys):
    file = tmp_path / "talk.json"
    talk(session, "/system be brief", "one", f"/save {file}", "/reset", f"/load {file}", "two")
    assert json.loads(file.read_text())["messages"][0] == {"role": "system", "content": "be brief"}
    assert roles(session.heard[-1]) == [
        ("system", "be brief"), ("user", "one"), ("assistant", "ONE"), ("user", "two")
    ]  # fmt: skip
    assert f"2 turns written to {file}" in capsys.readouterr().err


def test_stats_help_and_quit(session, capsys):
    talk(session, "one", "/stats", "/help", "/quit", "never said")
    told = capsys.readouterr()
    assert "1 answers, 0 tokens in 0.5 s" in told.err and f"the window holds {WINDOW}" in told.err
    assert "/retry" in told.err and told.out == "ONE\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/rety", "/rety"),
        ("/save", "/save"),
        ("/load nowhere.json", "nowhere.json"),
        ("/load ~nobody-here/x", "~nobody-here/x"),
        ("/retry", "no answer yet"),
    ],
)
def test_a_fault_is_told_and_the_conversation_goes_on(session, capsys, line, told):
    talk(session, line, "one")
    captured = capsys.readouterr()
    assert told in captured.err and captured.out == "ONE\n"


def test_a_refused_message_is_not_remembered(session, monkeypatch, capsys):
    def refuse(*_, **__):
        raise ValueError("The prompt takes 99 tokens")

    monkeypatch.setattr(room, "reply", refuse)
    talk(session, "too long")
    assert session.turns == [] and "99 tokens" in capsys.readouterr().err


def test_an_interruption_before_the_first_token_leaves_the_conversation_as_it_was(session, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    honest = room.reply
    talk(session, "one")
    monkeypatch.setattr(room, "reply", interrupted)
    talk(session, "two")
    monkeypatch.setattr(room, "reply", honest)
    talk(session, "three")
    assert roles(session.heard[-1]) == [("user", "one"), ("assistant", "ONE"), ("user", "three")]
    assert "(stopped)" in capsys.readouterr().err


def test_a_conversation_that_the_disk_has_no_room_for_is_not_half_written(session, monkeypatch, tmp_path, capsys):
    file = tmp_path / "talk.json"
    talk(session, "one", f"/save {file}")
    before = file.read_text()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    talk(session, "two", f"/save {file}")
    told = capsys.readouterr().err
    assert str(file) in told and "The disk is full" in told
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


def test_the_last_seeds_are_no_end_of_the_conversation(session):
    sampling = SamplingOptions(seed=SEEDS.stop - 2)
    session.options = ReplyOptions(8, decode=DecodeOptions(sampling))
    talk(session, "one", "two", "three")
    assert session.seeds == [SEEDS.stop - 2, SEEDS.stop - 1, SEEDS.stop - 1]


@pytest.mark.parametrize(("fills_window", "told"), [(True, "window"), (False, "2 new tokens")])
def test_an_answer_that_was_cut_says_by_what(capsys, fills_window, told):
    print_end(Reply(1, "x", [None, None], "length", fills_window=fills_window))
    assert told in capsys.readouterr().err
