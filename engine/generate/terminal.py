"""The conversation in a terminal: reads lines, prints answers while they are said, and knows a few commands."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.generate.reply import Reply
from engine.generate.session import ChatSession

COMMANDS = {
    "/reset": "forget the conversation",
    "/system TEXT": "set the system prompt and begin anew; without TEXT: none",
    "/retry": "another answer to the last message",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "take up a saved conversation",
    "/stats": "tokens, speed, depth, how full the window is",
    "/help": "these commands",
    "/quit": "leave (so does Ctrl-D)",
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
                show(*session.say(text, say))
        except (ValueError, OSError) as error:
            tell(str(error))


def command(session: ChatSession, text: str) -> None:
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == "/reset":
        session.reset()
        tell("The conversation begins anew.")
    elif name == "/system":
        session.system = argument or None
        session.reset()
        tell(f"System prompt: {argument}" if argument else "No system prompt. The conversation begins anew.")
    elif name == "/retry":
        show(*session.retry(say))
    elif name in ("/save", "/load"):
        if not argument:
            raise ValueError(f"{name} needs a file: {name} conversation.json")
        path = Path(argument).expanduser()
        session.save(path) if name == "/save" else session.load(path)
        tell(f"{len(session.turns)} turns {'written to' if name == '/save' else 'read from'} {path}")
    elif name == "/stats":
        tell(session.stats())
    elif name == "/help":
        tell("\n".join(f"{usage:14} {meaning}" for usage, meaning in COMMANDS.items()))
    else:
        raise ValueError(f"Unknown command {name}. Known are: {', '.join(usage.split()[0] for usage in COMMANDS)}.")


def show(answer: Reply, left_out: int) -> None:
    """The end of an answer that was printed as it was said."""
    print(flush=True)
    if answer.finish == "interrupted":
        tell("(stopped)")
    if answer.finish == "length":
        tell("(cut: no room for more)")
    if left_out:
        tell(f"(the window is full: the oldest {left_out} turns were left out)")


def say(piece: str) -> None:
    print(piece, end="", flush=True)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def typed_lines() -> Iterator[str]:
    """Lines from the terminal, with editing and history where there is one; Ctrl-C drops a line, Ctrl-D ends."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  # makes input() editable, with a history

        tell("Type a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            yield input("> " if is_terminal else "")
        except KeyboardInterrupt:
            tell("\n(Ctrl-D or /quit leaves)")
        except EOFError:
            return
