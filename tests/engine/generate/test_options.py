"""Options of generation: their flags, their defaults, what is refused, and that reading them needs no torch."""

import math
import subprocess
import sys
from unittest import mock

import pytest

from engine.config.command_line import command_line
from engine.generate.options import (
    CalibrateOptions,
    ChatOptions,
    DecodeOptions,
    ExitRule,
    InferenceOptions,
    InstructOptions,
    OpenOptions,
    ReplyOptions,
    SamplingOptions,
    ServeOptions,
)
from tests.tiny import ROOT

REQUIRED = {
    InstructOptions: [],
    ChatOptions: ["--checkpoint", "x", "--prompt", "y"],
    ServeOptions: ["--checkpoint", "x"],
    CalibrateOptions: ["--checkpoint", "x"],
    InferenceOptions: ["--checkpoint", "x"],
}


def read(kind, *words):
    with mock.patch.object(sys, "argv", ["program", *REQUIRED[kind], *words]):
        with command_line(kind(), "what it does") as options:
            return options


def test_without_flags_the_options_are_the_defaults():
    assert read(InstructOptions) == InstructOptions(OpenOptions(overrides=[]), reply=ReplyOptions(stop=[]))
    chat, serve = read(ChatOptions), read(ServeOptions)
    assert chat.reply == ReplyOptions(decode=DecodeOptions(SamplingOptions(temperature=0.7)))
    assert (serve.reply, serve.usual_temperature) == (ReplyOptions(), None)
    assert chat.opening == serve.opening == OpenOptions("x", newest=True)
    assert (serve.host, serve.port, serve.answers_at_once) == ("127.0.0.1", 8000, 16)


def test_every_flag_reaches_its_option():
    found = read(
        InstructOptions, "-m", "hi", "--max-output-tokens", "3", "--stop", "a", "--stop", "b", "--temperature", "1.5",
        "--exit", "kl", "--exit-threshold", "0.1", "--depth", "2", "--no-stream", "--overrides", "a=1", "b=2", "--json",
        "--truncate", "--compile", "--top-k", "7", "--device", "cpu", "--run-name", "r",
    )  # fmt: skip
    assert found == InstructOptions(
        OpenOptions(run_name="r", overrides=["a=1", "b=2"], device="cpu"),
        message="hi",
        reply=ReplyOptions(
            3,
            ["a", "b"],
            truncate=True,
            decode=DecodeOptions(
                SamplingOptions(temperature=1.5, top_k=7), depth=2, compile=True, exit=ExitRule("kl", 0.1)
            ),
        ),
        stream=False,
        json=True,
    )
    assert found.opening.path == "checkpoints/SlimOrca-ACT/r"
    assert read(ChatOptions, "--max-new-tokens", "4", "--seed", "3").reply.max_tokens == 4
    assert read(CalibrateOptions, "--max-loss-increase", "0.5").max_loss_increase == 0.5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ChatOptions, ["--interactive"]),  # beside --prompt
        (ChatOptions, ["--mode", "exact"]),
        (ServeOptions, ["--top-k", "3"]),
        (CalibrateOptions, ["--device", "cpu"]),
        (InstructOptions, ["--exit", "sometimes"]),
    ],
)
def test_flags_of_other_programs_are_unknown(kind, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        read(kind, *words)
    assert words[0] in capsys.readouterr().err


def test_the_removed_mode_is_refused_with_its_figure(capsys):
    with pytest.raises(ValueError, match="last_step.*46 to 51 %.*exact"):
        DecodeOptions(mode="last_step")
    with pytest.raises(SystemExit, match="2"):
        read(InstructOptions, "--mode", "last_step")
    assert "46 to 51 %" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        read(InstructOptions, "--mode", "fast")
    assert "mode=fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"repetition_penalty": math.inf}, "repetition_penalty=inf"),
        ({"seed": 2**64}, "seed=18446744073709551616.* to 18446744073709551615"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_bad_sampling_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (ExitRule, {"kind": "k", "threshold": 0.1}, "'k'"),
        (ExitRule, {"kind": "kl", "threshold": -1.0}, "-1.0"),
        (ExitRule, {"threshold": 0.5}, "--exit "),
        (DecodeOptions, {"depth": 0}, "depth=0"),
        (DecodeOptions, {"depth": 10**23}, "depth=1.*4096"),
        (DecodeOptions, {"mode": "fast"}, "mode=fast"),
        (DecodeOptions, {"depth": "auto", "exit": ExitRule("kl", 0.5)}, "--exit kl"),
        (DecodeOptions, {"depth": "auto", "mode": "recompute"}, "--depth auto"),
        (DecodeOptions, {"mode": "recompute", "exit": ExitRule("kl", 1e9)}, "mode=exact"),
        (ReplyOptions, {"stop": ("ok", "")}, "stop text"),
        (ReplyOptions, {"max_tokens": 0}, "max_tokens=0"),
        (InstructOptions, {"batch_size": 0}, "batch_size=0"),
        (ServeOptions, {"answers_at_once": 0}, "answers_at_once=0"),
        (CalibrateOptions, {"max_loss_increase": -0.1}, "max_loss_increase=-0.1"),
    ],
)
def test_bad_options_are_refused(kind, options, told):
    with pytest.raises(ValueError, match=told):
        kind(**options)


def test_a_depth_is_a_number_or_auto(capsys):
    assert read(InstructOptions, "--depth", "auto").reply.decode.depth == "auto"
    assert read(ChatOptions, "--depth", "6").reply.decode.depth == read(ServeOptions, "--depth", "6").reply.decode.depth
    with pytest.raises(SystemExit, match="2"):
        read(ServeOptions, "--depth", "deep")
    assert "depth=deep" in capsys.readouterr().err


def test_depths_of_an_evaluation_are_a_change_of_its_config(capsys):
    options = read(InferenceOptions, "--depths", "8,1,2,8")
    assert list(options.depths) == [1, 2, 8] and "eval.halt_max_steps=8" in options.config_changes
    assert not any("halt_max_steps" in change for change in read(InferenceOptions).config_changes)
    for wrong in ("0,2", "1,auto", "1,,2", "5000"):
        with pytest.raises(SystemExit, match="2"):
            read(InferenceOptions, "--depths", wrong)
        assert wrong in capsys.readouterr().err


def test_reading_the_flags_imports_no_torch():
    program = "import sys, engine.generate.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
