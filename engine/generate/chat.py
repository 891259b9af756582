"""Carries out what `generate.py` and `serve.py` ask: one answer, a conversation, or a server."""

import glob
import sys
from typing import Any

from engine.generate.instruct import INTERRUPTED
from engine.generate.loaded_model import Speaker, open_speaker
from engine.generate.reply import ReplySettings
from engine.generate.sampling import Sampling
from engine.generate.session import ChatSession
from engine.generate.terminal import converse, say, show, typed_lines
from engine.serve.app import LOOPBACK, Bounds, serve


def chat(
    *,
    checkpoint: str,
    prompt: str | None,
    interactive: bool,
    system: str | None,
    max_new_tokens: int | None,
    depth: int | None,
    compile: bool,
    exit: str,
    exit_threshold: float | None,
    device: str | None,
    stream: bool,
    **sampling: Any,
) -> int:
    """Answer and print; returns the exit code."""
    if prompt is not None and not prompt.strip():
        raise ValueError("The prompt is empty: there is nothing to answer. Give a text with --prompt.")
    chosen = Sampling(**sampling)
    speaker = open_newest(checkpoint, device)
    rule = speaker.exit_rule(exit, exit_threshold)
    session = ChatSession(
        speaker, ReplySettings(max_new_tokens, sampling=chosen, depth=depth, exit=rule, compile=compile), system
    )
    if interactive:
        converse(session, typed_lines())
        return 0
    assert prompt is not None
    answer, left_out = session.say(prompt, say if stream else lambda piece: None)
    if not stream:
        say(answer.text)
    show(answer, left_out)
    return INTERRUPTED if answer.finish == "interrupted" else 0


def open_newest(checkpoint: str, device: str | None) -> Speaker:
    """The checkpoint; if a pattern matches several, the newest of them, with a notice."""
    speaker = open_speaker(checkpoint, newest=True, device=device)
    if len(glob.glob(checkpoint)) > 1:
        print(f"{checkpoint} matches several checkpoints; taking the newest, {speaker.path}", file=sys.stderr)
    return speaker


def serve_checkpoint(
    *,
    checkpoint: str,
    host: str,
    port: int,
    device: str | None,
    max_new_tokens: int | None,
    temperature: float,
    depth: int | None,
    compile: bool,
    exit: str,
    exit_threshold: float | None,
    answers_at_once: int,
) -> None:
    """Serve until Ctrl-C; the address goes to standard output once requests are taken."""
    if answers_at_once < 1:
        raise ValueError(f"--answers-at-once={answers_at_once}: expected at least 1.")
    sampling = Sampling(temperature=temperature)
    speaker = open_newest(checkpoint, device)
    rule = speaker.exit_rule(exit, exit_threshold)
    settings = ReplySettings(max_new_tokens, sampling=sampling, depth=depth, exit=rule, compile=compile)
    with serve(speaker, settings, host, port, Bounds(answers_at_once=answers_at_once)) as server:
        bound, number = server.server_address[:2]
        shown = f"[{bound!s}]" if ":" in str(bound) else str(bound)
        print(f"http://{shown}:{number}", flush=True)
        if host not in LOOPBACK:
            print(f"open to other machines ({host}), without a password; Ctrl-C ends", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
