"""The entry point: the reply alone on standard output, batches, JSON, Ctrl-C, and faults in words."""

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import ROOT, Ended, run_door

DOOR = ROOT / "generate_instruct.py"
FIRST, SECOND = "What is 2 plus 3?", "Which day comes after Monday?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    ended = train_text(text_flags(write_corpus(folder / "data"), folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return folder / "run"


def say(*words, stdin: str = "", system: str | None = "") -> Ended:
    """Run it within this process; without a system message, for which the tests' window is too small."""
    words = (*words, "--system-message", system) if system is not None else words
    return run_door(DOOR.name, *words, stdin=stdin)


def records(ended: Ended) -> list[dict]:
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.removesuffix("\n").split("\n")]


def test_the_reply_alone_is_printed_streamed_or_not(run):
    short = ("--checkpoint", run, "--message", FIRST, "--max-output-tokens", 8)
    (record,) = records(say(*short, "--json"))
    for words in (("--stream",), ("--no-stream",), ()):
        ended = say(*short, *words)
        assert ended.code == 0 and ended.out == record["text"] + "\n"
    assert record["message"] == FIRST and record["finish"] in ("eos", "length") and record["prompt_tokens"] > 5
    assert len(record["tokens"]) == len(record["logprobs"]) == len(record["depths"]) <= 8
    assert set(record["depths"]) == {2} and max(record["logprobs"]) <= 0


def test_verbose_tells_every_token_on_standard_error(run):
    short = ("--checkpoint", run, "--message", FIRST, "--max-output-tokens", 4, "--depth", 3)
    (record,) = records(say(*short, "--json"))
    ended = say(*short, "-V")
    assert ended.out == record["text"] + "\n"
    told = [line for line in ended.err.splitlines() if "supervision steps |" in line]
    assert len(told) == len(record["tokens"]) and all("3 supervision steps" in line for line in told)
    likeliest = told[0].split(" | ")[1]
    assert likeliest.count(", ") >= 4 and told[0].split(" logprob")[0].removeprefix("[0] ") in likeliest


def test_many_messages_are_answered_one_a_line_as_each_alone(run, tmp_path):
    short = ("--checkpoint", run, "--max-output-tokens", 8, "--temperature", 1.5, "--seed", 7)
    alone = [records(say(*short, "--message", text, "--json"))[0] for text in (FIRST, SECOND)]
    file = tmp_path / "messages.txt"
    file.write_text(f"{FIRST}\n\n{SECOND}\n")
    together = records(say(*short, "--message-file", file, "--json"))
    assert [record["tokens"] for record in together] == [record["tokens"] for record in alone]
    piped = say(*short, "--message-file", "-", "--batch-size", 1, stdin=f"{FIRST}\n{SECOND}\n")
    assert piped.out.splitlines() == [record["text"].replace("\n", " ") for record in alone]


def test_only_a_line_break_parts_messages(run, tmp_path):
    file = tmp_path / "messages.txt"
    file.write_bytes("\ufeffone\u2028still one\r\nform\x0cfeed\n".encode())
    found = records(say("--checkpoint", run, "--max-output-tokens", 1, "--message-file", file, "--json"))
    assert [record["message"] for record in found] == ["one\u2028still one", "form\x0cfeed"]
    file.write_bytes(b"ok\n\xff\n")
    ended = say("--checkpoint", run, "--message-file", file)
    assert ended.code == 1 and str(file) in ended.err


def test_a_message_that_does_not_fit_is_named_before_any_is_answered(run):
    stdin = f"{FIRST}\n{'word ' * 200}\n"
    ended = say("--checkpoint", run, "--message-file", "-", "--batch-size", 1, stdin=stdin)
    assert ended.code == 1 and not ended.out and "Message 2 ('word word" in ended.err
    assert len(records(say("--checkpoint", run, "--message-file", "-", "--truncate", "--json", stdin=stdin))) == 2


def test_a_system_message_and_a_stop_text_change_the_reply(run):
    short = ("--checkpoint", run, "--message", FIRST, "--max-output-tokens", 8, "--json")
    (plain,) = records(say(*short))
    (usual,) = records(say(*short, "--overrides", "dataset.seq_len=512", system=None))
    (own,) = records(say(*short, system="Be brief."))
    assert plain["prompt_tokens"] < own["prompt_tokens"] < usual["prompt_tokens"]
    letter = next(character for character in plain["text"] if character.strip())
    (stopped,) = records(say(*short, "--stop", letter))
    assert stopped["finish"] == "stop" and stopped["text"] == plain["text"].partition(letter)[0]


def test_the_removed_mode_is_refused(run):
    ended = say("--checkpoint", run, "--message", "x", "--mode", "last_step")
    assert ended.code and "46 to 51 %" in ended.err and not ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--message", "  "], "message is empty"),
        (["--message", ""], "message is empty"),
        ([], "--message-file"),
        (["--message", "x", "--message-file", "-"], "--message-file"),
        (["--message-file", "-"], "standard input"),
        (
            ["--message", "word " * 200],
            "--truncate",
        ),
        (["--message", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["--message", "x", "--stop", ""], "stop text"),
        (["--message", "x", "--exit", "kl"], "calibrate_exit.py"),
        (["--message", "x", "--depth", "0"], "depth=0"),
        (["--message", "x", "--max-output-tokens", "0"], "max_tokens=0"),
        (["--message", "x", "--overrides", "dataset.seq_len"], "'dataset.seq_len'"),
        (["--message", "x", "--overrides", "arch.hidden_sise=3"], "hidden_size"),
        (["--message", "x", "--overrides", "seed=[1,2"], "'seed=[1,2'"),
        (["--message", "x", "--overrides", "[=1"], "'[=1'"),
        (["--message", "x", "--depth", "9" * 23], "4096"),
        (["--message", "x\udcff"], "udcff"),
        (["--message-file", "no\0where"], "Cannot read"),
        (["--message", "x", "--tokenizer-path", "none.model"], "none.model"),
    ],
)
def test_faults_are_told_in_words(run, words, told):
    ended = say("--checkpoint", run, *words)
    assert ended.code == 1 and told in ended.err and not ended.out and "Traceback" not in ended.err


def test_a_missing_checkpoint_is_told():
    assert "--run-name" in say("--message", "x").err
    ended = say("--checkpoint", "checkpoints/none/step_1", "--message", "x")
    assert ended.code == 1 and "checkpoints/none/step_1" in ended.err


def test_a_longer_window_can_be_asked_for(run):
    long = ("--checkpoint", run, "--message", "word " * 60, "--max-output-tokens", 4)
    assert say(*long).code == 1
    assert say(*long, "--overrides", "dataset.seq_len=512").code == 0
    assert say(*long, "--truncate").code == 0


def test_ctrl_c_before_the_first_word_leaves_without_a_traceback(run):
    with mock.patch("engine.generate.terminal.load_model", side_effect=KeyboardInterrupt):
        ended = say("--checkpoint", run, "--message", FIRST)
    assert ended.code == 130 and not ended.out and "Traceback" not in ended.err and ended.err.count("\n") <= 2


def test_ctrl_c_ends_with_what_was_said_so_far(run):
    command = [sys.executable, str(DOOR), "--checkpoint", str(run), "--message", FIRST, "--temperature", "9"]
    command += ["--system-message", ""]
    command += ["--depth", "3000", "--max-output-tokens", "36"]  # so deep that every token takes a while
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    first = process.stdout.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (first + out).endswith(b"\n") and len(first + out) > 1 and b"Traceback" not in err
