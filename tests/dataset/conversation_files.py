"""Small conversation files and the data sets that are built of them."""

import json
from pathlib import Path
from typing import Any

from dataset.build_chat_dataset import main
from dataset.text.conversation import Turn

WORDS = ("the", "small", "large", "cat", "dog", "sees", "hears", "sum", "letter", "question", "why", "é", "日本", "🙂")


def make_chat(number: int, num_turns: int = 2) -> dict[str, Any]:
    turns = []
    for turn in range(num_turns):
        text = " ".join(WORDS[(number * 7 + turn * 3 + i) % len(WORDS)] for i in range(3 + (number + turn) % 9))
        turns.append({"from": "gpt" if turn % 2 else "human", "value": f"{number} {text}"})
    return {"id": f"chat {number}", "conversations": turns}


def make_chats(count: int) -> list[dict[str, Any]]:
    return [make_chat(number, 2 + number % 5) for number in range(count)]


def from_turns(turns: list[Turn]) -> dict[str, Any]:
    return {"conversations": [{"from": turn.role, "value": turn.text} for turn in turns]}


def write_json(file: Path, records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return file


def build(folder: Path, records: Any, *flags: str, tokenizer: str = "train:400") -> Path:
    """Build a data set of these records in `folder`; later flags win."""
    file = write_json(folder.parent / f"{folder.name}.json", records)
    common = ["--tokenizer", tokenizer, "--max-length", "96", "--train-split", "0.8", "--num-workers", "1"]
    main(["--input-file", str(file), "--output-dir", str(folder), *common, *flags])
    return folder
