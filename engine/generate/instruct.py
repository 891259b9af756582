"""Carries out what `generate_instruct.py` asks: messages to replies, printed as text or JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from dataset.text.conversation import Turn
from engine.config.schema import InstructConfig
from engine.generate.decode import Token
from engine.generate.loaded_model import Speaker, open_speaker
from engine.generate.reply import Reply, ReplySettings, fitted_prompt, reply
from engine.generate.sampling import Sampling

INTERRUPTED = 130  # exit code after Ctrl-C
LIKELIEST = 5  # alternatives that --verbose shows of each token
MOST_MESSAGES = 100_000  # of one file
# One of SlimOrca's system prompts; what a model trained on that corpus is told unless the user says otherwise.
SLIMORCA_SYSTEM_PROMPT = (
    "You are an AI assistant. You will be given a task. You must generate a detailed and long answer."
)


def generate(
    *,
    checkpoint: str | None,
    message: str | None,
    message_file: str | None,
    system_message: str | None,
    batch_size: int,
    verbose: bool,
    stream: bool,
    as_json: bool,
    project_name: str,
    run_name: str | None,
    opening: dict[str, Any],
    exit_kind: str,
    exit_threshold: float | None,
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> int:
    """Answer and print; returns the exit code."""
    if checkpoint is None and run_name is None:
        raise ValueError(
            "Name the checkpoint: --checkpoint <folder or file>, or --run-name <run> (and --project-name)."
        )
    if batch_size < 1:
        raise ValueError(f"--batch-size={batch_size}: expected at least 1.")
    messages = messages_of(message, message_file)
    chosen = Sampling(**sampling)
    speaker = open_speaker(checkpoint or str(Path("checkpoints") / project_name / str(run_name)), **opening)
    asked = ReplySettings(
        sampling=chosen,
        exit=speaker.exit_rule(exit_kind, exit_threshold),
        num_top=LIKELIEST if verbose else 0,
        **settings,
    )
    if system_message is None and usual_system_prompt(speaker):
        system_message = SLIMORCA_SYSTEM_PROMPT
    streams = stream and not as_json and message_file is None
    conversations = [conversation(text, system_message) for text in messages]
    if message_file is not None:
        check_messages(speaker, conversations, asked)
    for first in range(0, len(messages), batch_size):
        answers = reply(
            speaker,
            conversations[first : first + batch_size],
            asked,
            on_text=(lambda _, text: print(text, end="", flush=True)) if streams else lambda row, text: None,
            on_token=(lambda token, _: print(told(speaker, token), file=sys.stderr))
            if verbose
            else lambda token, text: None,
        )
        for text, answer in zip(messages[first : first + batch_size], answers, strict=True):
            if as_json:
                print(json.dumps(as_record(text, answer), ensure_ascii=False), flush=True)
            else:
                print("" if streams else one_line(answer.text) if message_file else answer.text, flush=True)
        if any(answer.finish == "interrupted" for answer in answers):
            return INTERRUPTED
    return 0


def messages_of(message: str | None, file: str | None) -> list[str]:
    """The message, or every line of a file; `-` is standard input."""
    if (message is None) == (file is None):
        raise ValueError("Give the text to answer with --message, or many with --message-file, one a line.")
    if file is None:
        assert message is not None
        return [message]
    source = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{source} is no UTF-8 text ({problem}). Convert it to UTF-8.") from None
    found = [line for line in text.split("\n") if line.strip()]  # other separators may stand within a message
    if not found:
        raise ValueError(f"There is no message in {source}: expected one a line.")
    if len(found) > MOST_MESSAGES:
        raise ValueError(f"{len(found)} messages at once; expected at most {MOST_MESSAGES}. Split the file.")
    return found


def check_messages(speaker: Speaker, conversations: list[list[Turn]], asked: ReplySettings) -> None:
    """Refuse a message that cannot be answered before the first is, rather than after hours."""
    for number, turns in enumerate(conversations, start=1):
        try:
            fitted_prompt(speaker, turns, asked)
        except ValueError as problem:
            raise ValueError(f"Message {number} ({turns[-1].text[:40]!r}): {problem}") from None


def usual_system_prompt(speaker: Speaker) -> bool:
    """Whether the model was trained on records of SlimOrca's kind; the built-in corpus knows no such prompt."""
    return isinstance(speaker.config, InstructConfig) and speaker.config.dataset.source != "sample"


def conversation(message: str, system_message: str | None) -> list[Turn]:
    system = [Turn("system", system_message)] if system_message else []
    return [*system, Turn("user", message)]


def one_line(text: str) -> str:
    """Answers to a file of messages stand one a line too."""
    return text.replace("\r", " ").replace("\n", " ")


def told(speaker: Speaker, token: Token) -> str:
    """One line about a token: what was chosen, how likely it was, how deep it went, and what else it might have been."""
    others = ", ".join(f"{piece(speaker, other)} {probability:.3f}" for other, probability in token.top)
    return f"[{token.row}] {piece(speaker, token.id)} logprob {token.logprob:.3f}, {token.depth} supervision steps | {others}"


def piece(speaker: Speaker, token_id: int) -> str:
    shown = speaker.tokenizer.piece_bytes(token_id).decode(errors="replace")
    return repr(shown) if shown else f"<{token_id}>"


def as_record(message: str, answer: Reply) -> dict[str, Any]:
    return {
        "message": message,
        "text": answer.text,
        "finish": answer.finish,
        "tokens": [token.id for token in answer.tokens],
        "logprobs": [round(token.logprob, 6) for token in answer.tokens],
        "depths": [token.depth for token in answer.tokens],
        "prompt_tokens": answer.prompt_tokens,
        "seconds": round(answer.seconds, 4),
    }
