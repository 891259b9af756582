"""Replies: their text as it streams, what ends them, what fits the window, and checkpoints that cannot answer."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dataset.text.conversation import Turn
from engine.generate import reply as reply_room
from engine.generate.decode import ExitRule, Token
from engine.generate.loaded_model import open_speaker
from engine.generate.reply import ReplySettings, beginning_at_end, fitted_prompt, reply
from engine.generate.sampling import Sampling
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import flags, pretrain, write_sudoku

QUESTION = [Turn("user", "What is 2 plus 3?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reply")
    data = write_corpus(folder / "data")
    ended = train_text(text_flags(data, folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def speaker(folder):
    return open_speaker(str(folder / "run"), device="cpu")


class Scripted:
    """A decoding that says given texts, and never stops by itself."""

    def __init__(self, speaker, texts, end=False, interrupted_after=None):
        self.ids = [speaker.tokenizer.encode(text) + ([speaker.tokenizer.eos_id] if end else []) for text in texts]
        self.stopped, self.interrupted_after = set(), interrupted_after

    def __call__(self, model, prompts, options, open_lengths):
        self.options, self.prompts, self.open_lengths = options, prompts, open_lengths
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


def say(monkeypatch, speaker, texts, settings=None, **script):
    """What the replies are when the model says these texts, and the pieces in which they came."""
    fake = Scripted(speaker, texts, **script)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    pieces = [[] for _ in texts]
    answers = reply(
        speaker,
        [QUESTION for _ in texts],
        settings or ReplySettings(),
        on_text=lambda row, text: pieces[row].append(text),
    )
    assert [answer.text for answer in answers] == ["".join(row) for row in pieces]
    return answers, pieces, fake


def test_a_reply_ends_with_the_end_token_which_is_not_said(monkeypatch, speaker):
    (answer, other), pieces, _ = say(monkeypatch, speaker, ["five apples", "six"], end=True)
    assert answer.text == "five apples" and answer.finish == other.finish == "eos"
    assert len(pieces[0]) > 2 and answer.tokens[-1].id == speaker.tokenizer.eos_id
    assert answer.mean_depth == 2


def test_half_a_character_is_never_said(monkeypatch, speaker):
    text = "a ☃🦔é b"  # snowman and hedgehog come as single bytes from this small tokenizer
    (answer,), (pieces,), _ = say(monkeypatch, speaker, [text], end=True)
    assert answer.text == text and "\ufffd" not in "".join(pieces)
    assert len(answer.tokens) > len(pieces) > 2


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("seven", "five six "), ("six s", "five "), ("five", ""), ("eight", None), ("nine ten", None)],
)
def test_a_stop_text_ends_the_reply_and_no_part_of_it_is_said(monkeypatch, speaker, stop, expected):
    settings = ReplySettings(stop=(stop,))
    (answer, other), pieces, fake = say(monkeypatch, speaker, ["five six seven nine", "no number"], settings, end=True)
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


def test_a_special_token_can_be_named_as_a_stop(monkeypatch, speaker):
    _, _, fake = say(monkeypatch, speaker, ["x"], ReplySettings(stop=("</s>", "y")), end=True)
    assert fake.options.stop_ids == {speaker.tokenizer.eos_id}


def test_a_named_token_other_than_the_end_stops_and_what_was_held_back_is_said(monkeypatch, speaker):
    other = replace(speaker, stop_ids=frozenset())  # of this speaker </s> ends no answer
    (answer,), _, _ = say(monkeypatch, other, ["five s"], ReplySettings(stop=("</s>", "six")), end=True)
    assert answer.finish == "stop" and answer.text == "five s"


class WidePieces:
    """A byte-level tokenizer, one of whose tokens ends within a character."""

    eos_id, has_space_prefix, special_ids = 1, False, {}

    def piece_bytes(self, token_id):
        return b"five!\xe2\x98"


def test_nothing_is_said_behind_a_stop_text_not_even_half_a_character(monkeypatch, speaker):
    fake = Scripted(speaker, ["x"])
    fake.ids = [[0]]
    monkeypatch.setattr(reply_room, "Decoding", fake)
    (cut,) = reply(replace(speaker, tokenizer=WidePieces()), [QUESTION], ReplySettings(stop=("!",)))
    assert cut.text == "five" and cut.finish == "stop"


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ValueError, match="A stop text is empty"):
        ReplySettings(stop=("ok", ""))


def test_an_interruption_keeps_what_was_said(monkeypatch, speaker):
    (answer,), _, _ = say(monkeypatch, speaker, ["five six seven"], ReplySettings(stop=("s!",)), interrupted_after=3)
    assert answer.finish == "interrupted" and "five six seven".startswith(answer.text) and answer.text


def test_a_reply_has_half_of_the_window_unless_told(speaker):
    (short,) = reply(speaker, [QUESTION], ReplySettings(max_tokens=3))
    (usual,) = reply(speaker, [QUESTION], ReplySettings(sampling=Sampling(temperature=3.0)))
    assert len(short.tokens) <= 3 and len(usual.tokens) <= speaker.window // 2
    assert {short.finish, usual.finish} <= {"length", "eos"}


def test_a_prompt_that_does_not_fit_is_refused_by_how_much_or_shortened(monkeypatch, speaker):
    long = [Turn("system", "be kind"), Turn("user", "word " * 100)]
    ids = speaker.dialogue.encode_prompt(long)
    excess = len(ids) - speaker.window
    with pytest.raises(
        ValueError, match=rf"{len(ids)} tokens, {excess} more than the window of {speaker.window}.*--trun"
    ):
        reply(speaker, [long], ReplySettings())
    fake = Scripted(speaker, ["x"], end=True)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    reply(speaker, [long], ReplySettings(truncate=True, max_tokens=10))
    (prompt,) = fake.prompts
    assert speaker.window - 15 < len(prompt) <= speaker.window + 1 - 10
    end = speaker.dialogue.encode_prompt([Turn("user", "x")])[-4:]
    assert prompt[-4:] == end  # the markers are whole
    with pytest.raises(ValueError, match=r"Nothing of the message fits: .* Shorten the system message"):
        reply(speaker, [[Turn("system", "word " * 100), *QUESTION]], ReplySettings(truncate=True))


@pytest.mark.parametrize("wanted", [None, 60, 72, 5000])
def test_a_shortened_message_keeps_half_of_the_room_however_long_the_answer_may_be(speaker, wanted):
    def kept(text):
        return speaker.dialogue.encode_prompt([Turn("user", text)])

    ids, room = fitted_prompt(speaker, [Turn("user", "word " * 100)], ReplySettings(max_tokens=wanted, truncate=True))
    left = speaker.window + 1 - len(kept(""))
    assert len(ids) - len(kept("")) >= left // 2 - 2 and room + len(ids) <= speaker.window + 1
    assert room >= left // 2 - 2


@pytest.mark.parametrize("turns", [[], [Turn("user", "  ")], [Turn("assistant", "yes")]])
def test_nothing_to_answer_is_refused(speaker, turns):
    with pytest.raises(ValueError, match="The message is empty"):
        reply(speaker, [turns], ReplySettings())


def test_the_same_seed_says_the_same_alone_or_in_a_batch(speaker):
    settings = ReplySettings(max_tokens=12, sampling=Sampling(temperature=1.5, seed=4))
    questions = [[Turn("user", text)] for text in ("What is 2 plus 3?", "Say it", "Which day comes after Monday?")]
    together = reply(speaker, questions, settings)
    alone = [reply(speaker, [question], settings)[0] for question in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    other = reply(speaker, questions, ReplySettings(max_tokens=12, sampling=Sampling(temperature=1.5, seed=5)))
    assert [a.text for a in together] != [a.text for a in other]


def test_earlier_answers_are_no_part_of_what_sees_itself_both_ways(monkeypatch, speaker):
    fake = Scripted(speaker, ["x"], end=True)
    monkeypatch.setattr(reply_room, "Decoding", fake)
    turns = [*QUESTION, Turn("assistant", "5"), Turn("user", "and 3 plus 3?")]
    reply(speaker, [turns], ReplySettings())
    assert fake.open_lengths == [len(speaker.dialogue.encode_prompt(QUESTION))] < [len(fake.prompts[0])]


def test_an_exit_rule_takes_its_threshold_from_the_checkpoint_or_the_flag(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    opened = open_speaker(str(tmp_path / "run"))
    assert opened.exit_rule("none", None) is None and opened.exit_rule("kl", 0.5) == ExitRule("kl", 0.5)
    with pytest.raises(ValueError, match="no calibrated thresholds.*calibrate_exit.py"):
        opened.exit_rule("kl", None)
    (opened.path / "exit.json").write_text(json.dumps({"kl": {"threshold": 0.25}}))
    assert opened.exit_rule("kl", None) == ExitRule("kl", 0.25)
    with pytest.raises(ValueError, match="no threshold for 'head'"):
        opened.exit_rule("head", None)
    with pytest.raises(ValueError, match="needs a rule"):
        opened.exit_rule("none", 0.5)
    for written, told in (('{"kl": 0.5}', "no threshold for 'kl'"), ("[]", "no threshold"), ("{", "is no JSON")):
        (opened.path / "exit.json").write_text(written)
        with pytest.raises(ValueError, match=f"exit.json.*{told}.*--exit-threshold"):
            opened.exit_rule("kl", None)


def test_checkpoints_that_cannot_answer_say_why(folder, tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint at"):
        open_speaker(str(tmp_path / "nowhere"))
    shutil.copytree(folder / "run", tmp_path / "old", symlinks=True)
    for file in tmp_path.glob("old/step_*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        del config["arch"]["causal"]
        file.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="trained before causal training"):
        open_speaker(str(tmp_path / "old"))
    ended = pretrain(
        flags(write_sudoku(tmp_path / "sudoku"), tmp_path / "puzzle", max_steps=1, epochs=1, eval_interval=1)
    )
    assert ended.code == 0, ended.err
    with pytest.raises(ValueError, match="was not trained on conversations"):
        open_speaker(str(tmp_path / "puzzle"))
