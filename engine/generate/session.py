"""A conversation of several turns: keeps them, and leaves out the oldest when the window is full."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dataset.files.disk import write_file
from dataset.files.json_file import read_json
from dataset.text.conversation import Turn, parse_messages
from engine.build.text_checkpoint import LoadedModel
from engine.generate.options import SEEDS, ReplyOptions
from engine.generate.reply import Reply, reply

MAX_BYTES = 10_000_000  # of a saved conversation


@dataclass
class ChatSession:
    """The turns so far and the options of the next answer; asking for an answer again samples another one."""

    loaded: LoadedModel
    options: ReplyOptions
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    answers: list[Reply] = field(default_factory=list)

    def answer(self, text: str, on_text: Callable[[int, str], None]) -> tuple[Reply, int]:
        """Answer a message; returns the answer, and how many of the oldest turns were left out for it."""
        self.turns.append(Turn("user", text))
        try:
            turns, left_out = self._fitting_turns()
            (answer,) = reply(self.loaded, [turns], self._next_options(), on_text=on_text)
        except (ValueError, KeyboardInterrupt):
            self.turns.pop()
            raise
        self.turns.append(Turn("assistant", answer.text))
        self.answers.append(answer)
        return answer, left_out

    def retry(self, on_text: Callable[[int, str], None]) -> tuple[Reply, int]:
        """Another answer to the last message."""
        if len(self.turns) < 2:
            raise ValueError("There is no answer yet to give again.")
        message = self.turns[-2].text
        del self.turns[-2:]
        return self.answer(message, on_text)

    def reset(self) -> None:
        self.turns.clear()

    def save(self, path: Path) -> None:
        """As a record of the OpenAI form, which `dataset.build_chat_dataset --format openai` reads."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *({"role": turn.role, "content": turn.text} for turn in self.turns)]
        write_file(path, json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n")

    def load(self, path: Path) -> None:
        """Continue a saved conversation."""
        found = read_turns(path)
        self.system = found.pop(0).text if found and found[0].role == "system" else None
        self.turns = found[: len(found) - len(found) % 2]

    def stats(self) -> str:
        """How fast and how deep the answers were."""
        tokens = sum(len(answer.tokens) for answer in self.answers)
        seconds = sum(answer.seconds for answer in self.answers)
        depth = sum(token.depth for answer in self.answers for token in answer.tokens) / max(1, tokens)
        used = len(self.loaded.template.encode_prompt(self._with_system(self.turns)))
        return (
            f"{len(self.answers)} answers, {tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.1f} a second), "
            f"{depth:.1f} supervision steps a token; the conversation takes {used} tokens, the window holds {self.loaded.window}"
        )

    def _fitting_turns(self) -> tuple[list[Turn], int]:
        """The turns that fit, with room for an answer: the oldest exchanges are left out first."""
        wanted = self.options.max_tokens or self.loaded.window // 2
        room = min(wanted, max(1, self.loaded.window // 4))
        left_out = 0
        while left_out + 2 < len(self.turns):
            used = len(self.loaded.template.encode_prompt(self._with_system(self.turns[left_out:])))
            if used + room <= self.loaded.window + 1:
                break
            left_out += 2
        return self._with_system(self.turns[left_out:]), left_out

    def _with_system(self, turns: list[Turn]) -> list[Turn]:
        return [Turn("system", self.system), *turns] if self.system else turns

    def _next_options(self) -> ReplyOptions:
        """Each answer has the next seed, so that asking twice may give two answers, and a second run the same two."""
        decode = self.options.decode
        seed = min(decode.sampling.seed + len(self.answers), SEEDS.stop - 1)
        sampling = replace(decode.sampling, seed=seed)
        return replace(self.options, decode=replace(decode, sampling=sampling))


def read_turns(file: Path) -> list[Turn]:
    """The turns of a file that `ChatSession.save` or a user wrote."""
    if not file.is_file():  # a device may have no end
        raise ValueError(f"{file} is not a file.")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; expected at most {MAX_BYTES}.")
    expected = 'Expected {"messages": [{"role": ..., "content": ...}, ...]}.'
    try:
        return parse_messages(read_json(file, dict, expected).get("messages"))
    except ValueError as problem:
        raise ValueError(f"{file} is not a saved conversation: {problem}") from None
