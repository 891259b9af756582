"""Answers in a terminal: one message, a file of them, or a conversation; printed while generated, or as JSON."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.text.conversation import Turn
from engine.build.text_checkpoint import LoadedModel, load_model
from engine.config.text import InstructConfig
from engine.generate.batch import Token
from engine.generate.depth import options_for
from engine.generate.options import ChatOptions, InstructOptions, ReplyOptions
from engine.generate.reply import Reply, fitted_prompt, reply
from engine.generate.session import ChatSession

NUM_ALTERNATIVES = 5  # that --verbose shows of each token
MAX_MESSAGES = 100_000  # of one file
# One of SlimOrca's system prompts; what a model trained on that corpus is told unless the user says otherwise.
SLIMORCA_SYSTEM_PROMPT = (
    "You are an AI assistant. You will be given a task. You must generate a detailed and long answer."
)
COMMANDS = {
    "/reset": "forget the conversation",
    "/system TEXT": "set the system prompt and start again; without TEXT: none",
    "/retry": "another answer to the last message",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "continue a saved conversation",
    "/stats": "tokens, speed, depth, how full the window is",
    "/help": "these commands",
    "/quit": "leave (so does Ctrl-D)",
}


def chat(options: ChatOptions) -> None:
    """Answer one prompt, or hold a conversation."""
    if not options.interactive:
        single = InstructOptions(
            options.opening,
            message=options.prompt,
            system_message=options.system or "",
            reply=options.reply,
            stream=options.stream,
        )
        answer_messages(single)
        return
    loaded = load_model(options.opening)
    session = ChatSession(loaded, options_for(loaded, options.reply), options.system)
    converse(session, typed_lines())


def answer_messages(options: InstructOptions) -> None:
    """Answer a message or a file of them, and print the answers; an interruption is raised again after its batch."""
    messages = read_messages(options.message, options.message_file)
    is_file = options.message_file is not None
    loaded = load_model(options.opening)
    reply_options = options_for(loaded, options.reply)
    if options.verbose:
        reply_options = replace(reply_options, decode=replace(reply_options.decode, num_top=NUM_ALTERNATIVES))
    system = usual_system(loaded) if options.system_message is None else options.system_message
    conversations = [[*([Turn("system", system)] if system else []), Turn("user", text)] for text in messages]
    if is_file:
        check_messages(loaded, conversations, reply_options)
    streams = options.stream and not options.json and not is_file
    for first in range(0, len(messages), options.batch_size):
        answers = reply(
            loaded,
            conversations[first : first + options.batch_size],
            reply_options,
            on_text=print_piece if streams else None,
            on_token=(lambda token, _: print_error(describe(loaded, token))) if options.verbose else None,
        )
        for text, answer in zip(messages[first : first + options.batch_size], answers, strict=True):
            if options.json:
                print(json.dumps(as_record(text, answer), ensure_ascii=False), flush=True)
            elif is_file:  # answers to a file of messages stand one a line too
                print(answer.text.replace("\r", " ").replace("\n", " "), flush=True)
            else:
                print_end(answer, is_printed=streams)
        if any(answer.finish == "interrupted" for answer in answers):
            raise KeyboardInterrupt


def usual_system(loaded: LoadedModel) -> str:
    """A system message of the kind that the model was trained with; other corpora and chats know no such."""
    config = loaded.config
    is_of_orca = isinstance(config, InstructConfig) and config.dataset.is_of_orca
    return SLIMORCA_SYSTEM_PROMPT if is_of_orca else ""


def read_messages(message: str | None, file: str | None) -> list[str]:
    """The message, or every line of a file; `-` is standard input."""
    if (message is None) == (file is None):
        raise ValueError("Give the text to answer with --message, or many with --message-file, one a line.")
    if file is None:
        assert message is not None
        if not message.strip():
            raise ValueError("The message is empty: there is nothing to answer.")
        return [message]
    source = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{source} is not UTF-8 text ({problem}). Convert it to UTF-8.") from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"Cannot read {source} ({problem}). Name a file of text, or - for standard input.") from None
    found = [line for line in text.split("\n") if line.strip()]  # other separators may stand within a message
    if not found:
        raise ValueError(f"There is no message in {source}: expected one a line.")
    if len(found) > MAX_MESSAGES:
        raise ValueError(f"{len(found)} messages at once; expected at most {MAX_MESSAGES}. Split the file.")
    return found


def check_messages(loaded: LoadedModel, conversations: list[list[Turn]], options: ReplyOptions) -> None:
    """Refuse a message that cannot be answered before the first one is answered, rather than after hours."""
    for number, turns in enumerate(conversations, start=1):
        try:
            fitted_prompt(loaded, turns, options)
        except ValueError as problem:
            raise ValueError(f"Message {number} ({turns[-1].text[:40]!r}): {problem}") from None


def describe(loaded: LoadedModel, token: Token) -> str:
    """One line about a token: its text, its probability, its depth, and the likeliest alternatives."""
    others = ", ".join(f"{piece(loaded, other)} {probability:.3f}" for other, probability in token.top)
    chosen = f"[{token.row}] {piece(loaded, token.id)} logprob {token.logprob:.3f}"
    return f"{chosen}, {token.depth} supervision steps | {others}"


def piece(loaded: LoadedModel, token_id: int) -> str:
    shown = loaded.tokenizer.piece_bytes(token_id).decode(errors="replace")
    return repr(shown) if shown else f"<{token_id}>"


def as_record(message: str, answer: Reply) -> dict[str, Any]:
    """What --json prints of an answer."""
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


def converse(session: ChatSession, lines: Iterable[str]) -> None:
    """Answer line after line until they end or `/quit`."""
    for line in lines:
        text = line.strip()
        try:
            if text == "/quit":
                return
            if text.startswith("/"):
                command(session, text)
            elif text:
                print_end(*session.answer(text, print_piece))
        except (ValueError, OSError) as error:
            print_error(str(error))
        except KeyboardInterrupt:  # before the first token, or in a command
            print_error("\n(stopped)")


def command(session: ChatSession, text: str) -> None:
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == "/reset":
        session.reset()
        print_error("The conversation starts again.")
    elif name == "/system":
        session.system = argument or None
        session.reset()
        print_error(f"System prompt: {argument}" if argument else "No system prompt. The conversation starts again.")
    elif name == "/retry":
        print_end(*session.retry(print_piece))
    elif name in ("/save", "/load"):
        if not argument:
            raise ValueError(f"{name} needs a file: {name} conversation.json")
        path = Path(os.path.expanduser(argument))  # which leaves the name of an unknown user as it is
        session.save(path) if name == "/save" else session.load(path)
        print_error(f"{len(session.turns)} turns {'written to' if name == '/save' else 'read from'} {path}")
    elif name == "/stats":
        print_error(session.stats())
    elif name == "/help":
        print_error("\n".join(f"{usage:14} {meaning}" for usage, meaning in COMMANDS.items()))
    else:
        raise ValueError(f"Unknown command {name}. Known are: {', '.join(usage.split()[0] for usage in COMMANDS)}.")


def print_piece(_: int, text: str) -> None:
    print(text, end="", flush=True)


def print_end(answer: Reply, left_out: int = 0, *, is_printed: bool = True) -> None:
    """The end of an answer, and all of it unless it was printed while it was generated."""
    print("" if is_printed else answer.text, flush=True)
    if answer.finish == "interrupted":
        print_error("(stopped)")
    if answer.finish == "length":
        most = f"the limit of {len(answer.tokens)} new tokens is reached"
        print_error(f"(cut: {'the window is full' if answer.fills_window else most})")
    if left_out:
        print_error(f"(the window is full: the oldest {left_out} turns were left out)")


def print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def typed_lines() -> Iterator[str]:
    """Lines from the terminal, with editing and history where there is one; Ctrl-C drops a line, Ctrl-D ends."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  # makes input() editable, with a history

        print_error("Type a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            yield input("> " if is_terminal else "")
        except KeyboardInterrupt:
            print_error("\n(Ctrl-D or /quit leaves)")
        except EOFError:
            return
        except UnicodeDecodeError as problem:
            raise ValueError(f"Standard input is not UTF-8 text ({problem}). Convert it to UTF-8.") from None
