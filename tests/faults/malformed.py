"""Content that is whole and signed but malformed: of trainer states, weights, configs, tokenizers and JSON files."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dataset.files.disk import file_sha256

Change = Callable[[Path, random.Random], None]


def sign(file: Path) -> None:
    """Let meta.json beside the file say that it is what was saved."""
    meta = file.parent / "meta.json"
    if file == meta or not meta.exists():
        return
    content = json.loads(meta.read_text())
    content["files"][file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    meta.write_text(json.dumps(content))


def edit_trainer(edit: Callable[[dict[str, Any]], Any], file: Path, draw: random.Random) -> None:
    import torch

    content = torch.load(file, weights_only=True)
    edited = edit(content)
    torch.save(content if edited is None else edited, file)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit


def halve_tensors(value: Any) -> Any:
    """Every tensor of one or more dimensions loses its second half."""
    import torch

    if isinstance(value, torch.Tensor):
        return value[: len(value) // 2].clone() if value.dim() else value
    if isinstance(value, dict):
        return {key: halve_tensors(item) for key, item in value.items()}
    return [halve_tensors(item) for item in value] if isinstance(value, list) else value


def texts_for_tensors(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return "tensor"
    return {key: texts_for_tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def halved(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, halve_tensors(content[name]))


TRAINER_EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda content: [content],
    "no-dict-inside": lambda content: dict.fromkeys(content, 5),
    "nothing-inside": lambda content: dict.fromkeys(content),
    "empty": lambda content: {},
    **{f"no-{name}": drop(name) for name in ("state", "optimizers", "task", "torch_rng")},
    **{f"empty-{name}": put(name, value={}) for name in ("state", "optimizers", "task")},
    **{f"list-{name}": put(name, value=[]) for name in ("state", "optimizers", "task", "torch_rng")},
    **{f"halved-{name}": halved(name) for name in ("optimizers", "task", "torch_rng")},
    "texts": lambda content: content.__setitem__("optimizers", texts_for_tensors(content["optimizers"])),
    "step-text": put("state", "step", value="nine"),
    "step-negative": put("state", "step", value=-3),
    "step-fraction": put("state", "step", value=2.5),
    "step-huge": put("state", "step", value=1 << 70),
    "iteration-none": put("state", "iteration", value=None),
    "batches-huge": put("state", "batches_done", value=10**12),
    "unknown-field": put("state", "colour", value=1),
}


def edit_weights(edit: Callable[[dict[str, Any], str], Any], file: Path, draw: random.Random) -> None:
    from safetensors.torch import load_file, save_file

    content = load_file(file)
    edit(content, draw.choice(sorted(name for name, tensor in content.items() if tensor.dim() > 1)))
    save_file(content, file)


WEIGHT_EDITS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "missing": lambda content, name: content.pop(name),
    "more": lambda content, name: content.__setitem__("colour", content[name].clone()),
    "shape": lambda content, name: content.__setitem__(name, content[name][:-1].clone()),
    "none": lambda content, name: content.clear(),
}


def rewrite(content: str | bytes, file: Path, draw: random.Random) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def add_line(line: str, file: Path, draw: random.Random) -> None:
    """Behind a config, where a later value wins or the key is unknown."""
    file.write_text(file.read_text() + line + "\n")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS: dict[str, Change] = {
    "list": partial(rewrite, "- a\n- b\n"),
    "text": partial(rewrite, "hello\n"),
    "unclosed": partial(rewrite, "arch: [1, 2\nname: {"),
    "bytes": partial(rewrite, b"\x00\xff\xfe arch: 1"),
    "tab": partial(rewrite, "arch:\n\tname: 1\n"),
    "nested": partial(rewrite, "[" * 5000),
    "bomb": partial(rewrite, BOMB),
    "bomb-within": partial(add_line, BOMB),
    "environment": partial(add_line, "run_name: ${oc.env:HOME}"),
    "python-object": partial(add_line, "run_name: !!python/object/apply:os.system ['true']"),
    "no-arch": partial(rewrite, "arch: null\n"),
    "arch-text": partial(rewrite, "arch: trm\n"),
    "cycle": partial(rewrite, "arch: ${arch}\n"),
}
JSON_TEXTS: dict[str, Change] = {
    "object": partial(rewrite, "{}"),
    "list": partial(rewrite, "[]"),
    "null": partial(rewrite, "null"),
    "nested": partial(rewrite, "[" * 100_000),
    "not-utf8": partial(rewrite, b'{"a": "\xff"}'),
    "nan": partial(rewrite, '{"step": NaN, "files": NaN}'),
    "long-number": partial(rewrite, '{"step": ' + "9" * 6000 + "}"),
}
HOSTILE: tuple[Any, ...] = (None, -1, 1 << 80, "x", [], {}, "../../x", "/etc/passwd", True, 1.5, "")


def change_json(file: Path, draw: random.Random) -> None:
    """Another value at a random place, or the name of an entry changed."""
    content = json.loads(file.read_text())
    inner: Any = content
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw.choice(keys)
        deeper = isinstance(inner[key], dict | list) and inner[key] and draw.random() < 0.7
        if not deeper:
            break
        inner = inner[key]
    value = draw.choice([value for value in HOSTILE if value != inner[key]])
    if isinstance(inner, dict) and draw.random() < 0.25:
        inner["../" + str(key)] = inner.pop(key)
    else:
        inner[key] = value
    file.write_text(json.dumps(content))


def change_tokenizer(edit: Callable[[dict[str, Any]], Any], file: Path, draw: random.Random) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


TRAINERS = {name: partial(edit_trainer, edit) for name, edit in TRAINER_EDITS.items()}
WEIGHTS = {name: partial(edit_weights, edit) for name, edit in WEIGHT_EDITS.items()}
TOKENIZERS: dict[str, Change] = {
    "object": JSON_TEXTS["object"],
    "nested": JSON_TEXTS["nested"],
    "no-model": partial(change_tokenizer, drop("model")),
    "no-vocabulary": partial(change_tokenizer, put("model", "vocab", value={})),
    "merges-text": partial(change_tokenizer, put("model", "merges", value="ab")),
    "added-text": partial(change_tokenizer, put("added_tokens", value="x")),
}
AT_RANDOM: dict[str, Change] = {f"value-{number}": change_json for number in range(1, 6)}
