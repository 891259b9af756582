"""Malformed data that people give to builders, trainings and generation: refused with the file's name."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.inputs import SOON
from tests.faults.programs import Programs
from tests.faults.scenarios import (
    CHAT_RUN,
    TEXT_RUN,
    TUNING_RUN,
    arc_words,
    chat_build_words,
    copy_pets,
    distill_words,
    preprocess_words,
    text_tokenizer,
    text_words,
    tuning_words,
    write_arc,
)
from tests.faults.verdicts import Case, Problems, crashes, refusal
from tests.recorded.items import packed, teacher, tokenizer

TURN = {"from": "human", "value": "Hi"}
LINES: dict[str, bytes] = {  # JSON and JSON Lines
    "empty": b"",
    "blank": b"\n\n  \n",
    "cut": b'{"text": "cut',
    "noise": bytes(range(256)) * 8,
    "null": b"null\n",
    "number": b"12\n",
    "list": b"[1, 2]\n",
    "empty-list": b"[]",
    "empty-object": b"{}\n",
    "nested": b"[" * 100_000,
    "deep-object": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "long-number": b'{"text": ' + b"9" * 6000 + b"}\n",
    "surrogate": b'{"text": "\\ud800", "conversations": [{"from": "human", "value": "\\ud800"}]}\n',
    "latin": '{"text": "é"}\n'.encode("latin-1"),
    "utf16": '{"text": "a"}\n'.encode("utf-16"),
    "mark": b"\xef\xbb\xbf" + b'{"text": 5, "messages": 5}\n',
    "null-text": b'{"text": null, "conversations": null, "messages": null, "instruction": null, "output": null}\n',
    "text-number": b'{"text": 5, "conversations": 5, "messages": 5}\n',
    "null-turn": json.dumps(
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "a"}]}
    ).encode(),
    "null-user": json.dumps(
        {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}
    ).encode(),
    "turns-numbers": b'{"conversations": [1, 2], "messages": [1, 2]}\n',
    "role": json.dumps({"messages": [{"role": "robot", "content": "x"}]}).encode(),
    "role-list": json.dumps({"messages": [{"role": ["user"], "content": "x"}]}).encode(),
    "weight": json.dumps({"conversations": [TURN, {"from": "gpt", "value": "a", "weight": "much"}]}).encode(),
    "empty-turns": json.dumps(
        {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": ""}]}
    ).encode(),
    "one-turn": json.dumps({"conversations": [TURN]}).encode(),
}
GRIDS: dict[str, Any] = {
    **{"empty": {}, "list": [], "null": None, "text": "x", "puzzle-null": {"puzzle0": None}},
    **{"no-test": {"puzzle0": {"train": []}}, "train-text": {"puzzle0": {"train": "x", "test": []}}},
    "eleven": {"puzzle0": {"train": [{"input": [[11]], "output": [[1]]}], "test": [{"input": [[1]]}]}},
    "ragged": {"puzzle0": {"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{"input": [[1]]}]}},
    "large": {"puzzle0": {"train": [{"input": [[1] * 40] * 40, "output": [[1]]}], "test": [{"input": [[1]]}]}},
    "fraction": {"puzzle0": {"train": [{"input": [[0.5]], "output": [[1]]}], "test": [{"input": [[1]]}]}},
}
TABLES: dict[str, bytes] = {
    "empty": b"",
    "header": b"source,question,answer,rating\n",
    "other": b"a,b\n1,2\n",
    "short": b"source,question,answer,rating\nx,123,123,0\n",
    "letters": b"source,question,answer,rating\nx," + b"z" * 81 + b"," + b"1" * 81 + b",0\n",
    "long-field": b"source,question,answer,rating\nx," + b"." * 200_000 + b",1,0\n",
    "null-byte": b"source,question,answer,rating\nx,\x00,\x00,0\n",
    "noise": bytes(range(256)) * 8,
    "rating": b"source,question,answer,rating\nx," + b"." * 81 + b"," + b"1" * 81 + b",high\n",
}
YAML: dict[str, bytes] = {
    **{
        "empty": b"",
        "list": b"- a\n",
        "text": b"hello",
        "unclosed": b"a: [1",
        "tab": b"a:\n\tb: 1",
        "noise": b"\x00\xff",
    },
    **{
        "unknown": b"colour: red\n",
        "nested": b"[" * 5000,
        "object": b"seed: !!python/object/apply:os.system ['true']\n",
    },
    **{"wrong": b"seed: [1, 2]\nmax_steps: {a: b}\n", "twice": b"seed: 1\nseed: 2\n"},
    "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%b]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)),
}


@dataclass(frozen=True)
class Reader:
    """A program that reads a file which people make."""

    name: str
    door: str
    file: str  # below the folder
    contents: dict[str, bytes]
    words: Callable[[Programs, Path], list[Any]]
    prepare: Callable[[Programs, Path], object] = lambda world, place: None


def chat_file_words(world: Programs, place: Path) -> list[Any]:
    return [
        place / "pets.json" if word == str(place / "pets.json") else word for word in chat_build_words(world, place)
    ]


def boards_words(world: Programs, place: Path) -> list[Any]:
    return ["--source", place / "source", "--output-dir", place / "out", "--num-workers", 1]


def messages_words(world: Programs, place: Path) -> list[Any]:
    run = TEXT_RUN.reference(world) / "run" / "latest"
    return ["--checkpoint", run, "--message-file", place / "questions.txt", "--max-output-tokens", 4, "--device", "cpu"]


def weights_words(world: Programs, place: Path) -> list[Any]:
    return ["--checkpoint", place / "model.pt", "--prompt", "Hi", "--device", "cpu"]


def config_words(base: Callable[[Programs, Path], list[Any]], world: Programs, place: Path) -> list[Any]:
    return ["--config", place / "options.yaml", *base(world, place), "--max-steps", 1]


def tokenizer_words(world: Programs, place: Path) -> list[Any]:
    return [*chat_build_words(world, place), "--tokenizer", place / "tokenizer.json"]


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


PACKED = {
    "cut": zipped(LINES["one-turn"] * 99)[:-12],
    "plain": LINES["one-turn"],
    "noise": LINES["noise"],
    "empty": b"",
}
READERS = (
    Reader("chat", "build_chat", "pets.json", LINES, chat_file_words),
    Reader("corpus", "preprocess", "raw/a.jsonl", LINES, preprocess_words),
    Reader("slimorca", "instruct", "data/SlimOrca.jsonl", LINES, text_words),
    Reader("packed", "preprocess", "raw/a.jsonl.gz", PACKED, preprocess_words),
    Reader("packed-zst", "preprocess", "raw/a.jsonl.zst", PACKED, preprocess_words),
    Reader(
        *("arc", "build_arc", "x_training_challenges.json"),
        {name: json.dumps(content).encode() for name, content in GRIDS.items()},
        *(arc_words, write_arc),
    ),
    Reader("sudoku", "build_sudoku", "source/train.csv", TABLES, boards_words),
    Reader("maze", "build_maze", "source/train.csv", TABLES, boards_words),
    Reader("distill", "distill", "options.yaml", YAML, partial(config_words, distill_words)),
    Reader("tune", "tune", "options.yaml", YAML, partial(config_words, tuning_words)),
    Reader(
        "questions",
        "answer",
        "questions.txt",
        {n: LINES[n] for n in ("empty", "blank", "noise", "utf16")},
        messages_words,
    ),
    Reader("weights", "chat", "model.pt", {n: LINES[n] for n in ("empty", "noise", "cut")}, weights_words),
    Reader(
        *("tokenizer", "build_chat", "tokenizer.json"),
        {name: LINES[name] for name in ("empty", "noise", "null", "empty-object", "list", "nested")},
        *(tokenizer_words, copy_pets),
    ),
)
EVERY = {"corpus": 2, "slimorca": 2, "maze": 2, "tune": 3}  # readers that share code take each second or third content


def try_content(
    reader: Reader, content: bytes, world: Programs, folder: Path, draw: random.Random
) -> tuple[Problems, str]:
    place = folder / "work"
    place.mkdir()
    reader.prepare(world, place)
    file = place / reader.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if reader.name in ("sudoku", "maze"):
        (file.parent / "test.csv").write_bytes(content)
    ended = world.run(reader.door, *reader.words(world, place), place=place, limit=SOON)
    if ended.code == 0:
        return crashes(ended), reader.file
    keys = ("hello", "colour", "seed") if reader.contents is YAML else ()  # a wrong option is named, not its file
    return refusal(ended, file.name, str(file.parent), "the input", "--config", *keys), reader.file


def cases() -> list[Case]:
    found = []
    for reader in READERS:
        for name, content in list(reader.contents.items())[:: EVERY.get(reader.name, 1)]:
            found.append(Case("input", f"input/{reader.name}-data/{name}", partial(try_content, reader, content)))
    return found


def prepare(world: Programs, names: list[str]) -> None:
    if not any("-data/" in name for name in names):
        return
    for make in (
        text_tokenizer,
        packed,
        teacher,
        tokenizer,
        CHAT_RUN.reference,
        TEXT_RUN.reference,
        TUNING_RUN.reference,
    ):
        make(world)
    chat_build_words(world, world.place)
