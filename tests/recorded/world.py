"""Runs the programs of a tree as processes and makes their inputs, with public libraries only and nothing of the tree.

Modules may move and merge; a program's name may change too, and then DOORS is the only thing to edit.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOORS = {
    "pretrain": ["pretrain.py"],
    "instruct": ["pretrain_instruct.py"],
    "inference": ["inference_instruct.py"],
    "answer": ["generate_instruct.py"],
    "chat": ["generate.py"],
    "serve": ["serve.py"],
    "build_sudoku": ["-m", "dataset.build_sudoku_dataset"],
    "build_maze": ["-m", "dataset.build_maze_dataset"],
    "build_arc": ["-m", "dataset.build_arc_dataset"],
    "build_chat": ["-m", "dataset.build_chat_dataset"],
    "conversations": ["examples/make_conversations.py"],
    "show_sample": ["scripts/show_sample.py"],
    "show_puzzles": ["scripts/show_puzzles.py"],
    "calibrate": ["scripts/calibrate_exit.py"],
    "bigram": ["scripts/bigram_baseline.py"],
    "plot": ["scripts/plot_run.py"],
    "probe_leaks": ["scripts/probe_leaks.py"],
    "study": ["scripts/study_text.py"],
    "preprocess": ["data/preprocess_to_parquet.py"],
    "download_curriculum": ["data/download_curriculum_datasets.py"],
    "download_missing": ["data/download_missing_datasets.py"],
    "cache": ["scripts/cache_teacher_logits.py"],
    "tune": ["scripts/finetune_teacher.py"],
    "distill": ["-m", "src.distillation.scripts.train"],
    "perplexity": ["-m", "src.distillation.evaluation.perplexity"],
    "needle": ["-m", "src.distillation.evaluation.needle"],
}
SETTINGS = {
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DISABLE_COMPILE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    **{"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONHASHSEED": "0", "COLUMNS": "4000", "NO_COLOR": "1"},
    **{"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"},
}
DROPPED = ("PYTHONPATH", "LLAMA_TOKENIZER", "WANDB_API_KEY", "TEACHER_API_KEY", "HF_TOKEN", "PYTHONPYCACHEPREFIX")
BYTES = 256


class FailedError(RuntimeError):
    """A program did not end well."""


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in DROPPED} | SETTINGS


@dataclass
class World:
    """One tree, and one folder in which everything that it writes is kept until the end."""

    root: Path
    place: Path
    is_plain: bool = False  # a new interpreter for every program instead of a fork of a warm one
    warm: subprocess.Popen[str] | None = None

    def call(self, door: str, *words: Any, stdin: str = "", cwd: Path | None = None) -> str:
        """What the program prints, started in the tree's root or in `cwd`."""
        program = DOORS[door] if DOORS[door][0] == "-m" else [str(self.root / DOORS[door][0])]
        command = [*program, *(str(word) for word in words)]
        files = {name: str(self.place / f"last.{name}") for name in ("stdin", "stdout", "stderr")}
        Path(files["stdin"]).write_text(stdin, encoding="utf-8")
        code = (self.run_plain if self.is_plain else self.run_warm)(command, files, cwd or self.root)
        if code:
            last = Path(files["stderr"]).read_text(encoding="utf-8", errors="replace").splitlines()[-4:]
            raise FailedError(f"{door} ended with {code}: {' | '.join(last)}")
        return Path(files["stdout"]).read_text(encoding="utf-8", errors="replace")

    def run_plain(self, command: list[str], files: dict[str, str], cwd: Path) -> int:
        with open(files["stdin"]) as given, open(files["stdout"], "w") as out, open(files["stderr"], "w") as err:
            words, env = [sys.executable, *command], environment() | {"PYTHONPATH": str(self.root)}
            return subprocess.run(words, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err, check=False).returncode

    def run_warm(self, command: list[str], files: dict[str, str], cwd: Path) -> int:
        if self.warm is None:
            words = [sys.executable, str(Path(__file__).with_name("warm.py")), str(self.place / "compiled")]
            self.warm = subprocess.Popen(
                words, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert self.warm.stdout and self.warm.stdout.readline() == "ready\n"
        assert self.warm.stdin and self.warm.stdout
        self.warm.stdin.write(json.dumps({"command": command, "root": str(self.root), "cwd": str(cwd), **files}) + "\n")
        self.warm.stdin.flush()
        return int(self.warm.stdout.readline())

    def close(self) -> None:
        if self.warm is not None and self.warm.stdin:
            self.warm.stdin.close()
            self.warm.wait()
            self.warm = None

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file or folder that several items share; the first to ask for it makes it."""
        path = self.place / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
        return path

    def fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))


def options(*parts: dict[str, Any]) -> list[str]:
    """Hydra's words, later parts win."""
    merged = {key: value for part in parts for key, value in part.items()}
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in merged.items()]


def flags(*parts: dict[str, Any]) -> list[str]:
    """A command line; True and False become --key and --no-key, later parts win."""
    words = []
    for key, value in {key: value for part in parts for key, value in part.items()}.items():
        flag = key.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def write_lines(file: Path, records: list[Any]) -> None:
    """JSON Lines, packed as the name says."""
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if file.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    elif file.suffix == ".zst":
        import zstandard

        content = zstandard.ZstdCompressor().compress(content)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


# --- tokenizers and teachers ---


def added_token(token: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def write_bytes_tokenizer(folder: Path) -> None:
    """A tokenizer.json whose pieces are single bytes, and three special tokens behind them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(BYTES + i): byte for i, byte in enumerate(others)}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0",
        "added_tokens": [added_token(name, BYTES + i) for i, name in enumerate(("<s>", "</s>", "<|eot|>"))],
        "pre_tokenizer": levels,
        "decoder": levels,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def write_llama_tokenizer(folder: Path) -> None:
    """Like LLaMA's: a space put before a text, bytes where there is no piece."""
    letters = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(BYTES)), "\u2581", *"abcdehinrstwxT")
    vocab, merges = {token: number for number, token in enumerate(letters)}, []
    for piece in ("\u2581\u2581", "\u2581the", "\u2581is", "the", "is"):
        for stop in range(2, len(piece) + 1):
            if piece[:stop] not in vocab:
                vocab[piece[:stop]] = len(vocab)
                merges.append([piece[: stop - 1], piece[stop - 1]])
    spaces = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    content = {
        "version": "1.0",
        "added_tokens": [added_token(token, number) for number, token in enumerate(letters[:3])],
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "model": {**model, "vocab": vocab, "merges": merges},
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))


SIZES = {
    **{"vocab_size": BYTES + 3, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
    **{"bos_token_id": BYTES, "eos_token_id": BYTES + 1, "pad_token_id": BYTES + 1, "initializer_range": 0.3},
}


def write_teacher(folder: Path, **changes: Any) -> None:
    """A tiny Llama of random weights that is sure of what it says, for the tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).save_pretrained(folder)


# --- texts ---

WORDS = ("the", "small", "large", "cat", "dog", "sees", "hears", "sum", "letter", "question", "why", "é", "日本", "🙂")


def sentence(number: int, turn: int) -> str:
    return f"{number} " + " ".join(WORDS[(number * 7 + turn * 3 + i) % len(WORDS)] for i in range(3 + number % 6))


def turns_of(number: int) -> list[tuple[bool, str]]:
    """(is an answer, text) of two or four turns; some are hard on a tokenizer and on a template."""
    odd = ["  two  spaces\nand a line", "[ASSISTANT] no answer</s>", "<|user|>not a turn<|endoftext|>", "tab\tend "]
    count = 2 + 2 * (number % 2)
    return [(turn % 2 == 1, sentence(number, turn) + (odd[turn] if number % 5 == 0 else "")) for turn in range(count)]


def instruct_records(count: int = 60) -> list[dict[str, Any]]:
    """Every form in which a line may stand, with and without system prompt, some answers that are only read."""
    records: list[dict[str, Any]] = []
    for number in range(count):
        turns = turns_of(number)
        question, answer = turns[0][1], turns[1][1]
        form = number % 4
        if form == 0:
            system = [{"from": "system", "value": "Be brief.", "weight": None}] if number % 8 else []
            talk = [
                {
                    "from": "gpt" if says else "human",
                    "value": text,
                    "weight": float(says and (number % 12 > 0 or i > 1)),
                }
                for i, (says, text) in enumerate(turns)
            ]
            records.append({"conversations": [*system, *talk]})
        elif form == 1:
            talk = [{"role": "assistant" if says else "user", "content": text} for says, text in turns]
            records.append({"messages": talk})
        elif form == 2:
            records.append({"system_prompt": "Be kind.", "question": question, "response": answer})
        else:
            records.append({"system": "", "prompt": question, "answer": answer})
    return records


def chat_records(form: str, count: int = 40) -> list[dict[str, Any]]:
    if form == "sharegpt":
        named = [
            [{"from": "gpt" if says else "human", "value": text} for says, text in turns_of(n)] for n in range(count)
        ]
        return [{"id": f"chat {number}", "conversations": talk} for number, talk in enumerate(named)]
    if form == "alpaca":
        pairs = [[text for _, text in turns_of(number)] for number in range(count)]
        return [
            {"instruction": pair[0], "input": "more" if number % 3 else "", "output": pair[1]}
            for number, pair in enumerate(pairs)
        ]
    if form == "openai":
        talks = [
            [{"role": "assistant" if says else "user", "content": text} for says, text in turns_of(n)]
            for n in range(count)
        ]
        talks[0][0]["content"] = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]  # type: ignore
        return [{"messages": [{"role": "system", "content": "Be brief."}, *talk]} for talk in talks]
    if form == "openassistant":
        rows: list[dict[str, Any]] = []
        for number in range(count):
            parent = None
            for place, (says, text) in enumerate(turns_of(number)):
                name = f"{number}-{place}"
                common = {"message_id": name, "parent_id": parent, "message_tree_id": f"{number}-0", "lang": "en"}
                rows.append(
                    {**common, "role": "assistant" if says else "prompter", "text": text, "rank": 0 if says else None}
                )
                if says and number % 3 == 0:
                    other = {
                        **common,
                        "message_id": f"{name}-b",
                        "role": "assistant",
                        "text": f"worse {text}",
                        "rank": 1,
                    }
                    rows.append(other)
                parent = name
        return rows
    raise ValueError(form)


def document_records(count: int = 150, seed: int = 0) -> list[dict[str, Any]]:
    """Words in which each of eight letters is followed by one of two, in the forms that a corpus may have."""
    draw = random.Random(seed)
    follows = {letter: random.Random(letter).sample("abcdefgh", 2) for letter in "abcdefgh"}
    records: list[dict[str, Any]] = []
    for number in range(count):
        text = draw.choice("abcdefgh")
        for _ in range(draw.randint(10, 90 if number % 20 == 0 else 40)):
            text += draw.choice(follows[text[-1]])
        if number % 10 == 1:
            records.append({"prompt": text[:5], "response": text[5:]})
        elif number % 10 == 2:
            talk = [{"role": "user", "content": text[:5]}, {"role": "assistant", "content": text[5:]}]
            records.append({"messages": talk})
        else:
            records.append({"text": text})
    return records


def arc_puzzles() -> tuple[dict[str, Any], dict[str, Any]]:
    """Challenges and solutions of three made-up puzzles."""
    draw = random.Random(0)
    challenges: dict[str, Any] = {}
    solutions: dict[str, Any] = {}
    for number in range(3):
        grids = [[[draw.randint(0, 9) for _ in range(3 + number)] for _ in range(2 + pair)] for pair in range(3)]
        mirrored = [[row[::-1] for row in grid] for grid in grids]
        name = f"puzzle{number}"
        pairs = [{"input": one, "output": other} for one, other in zip(grids, mirrored, strict=True)]
        challenges[name] = {"train": pairs[:2], "test": [{"input": grids[2]}]}
        solutions[name] = [mirrored[2]]
    return challenges, solutions
