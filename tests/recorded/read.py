"""Reads what the programs leave: losses as exact numbers, arrays and long texts as hashes, options out of --help."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

Found = dict[str, Any]
SHOWN = ("loss", "lm_loss", "token_loss", "ce", "kd", "kl")  # recorded step by step; of the others a hash and the last
TIMES = re.compile(r"^time$|^perf/|seconds|per_second")
STEPS = 20


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def flat(data: Any, prefix: str = "") -> Found:
    """Nested dictionaries as one, with dots in the keys."""
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value for name, part in data.items() for key, value in flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines]


def training(run_dir: Path) -> Found:
    """The first steps of a run and what it reached on held-out data."""
    lines = lines_of(run_dir)
    steps = [line for line in lines if any(key.startswith("train/") for key in line)]
    found: Found = {"steps": steps[-1]["step"]}
    for key in sorted({key for line in steps for key in line if key.startswith("train/")}):
        values = [line.get(key) for line in steps[:STEPS]]
        shown = key.removeprefix("train/") in SHOWN
        found[key] = values if shown else [digest(repr(values)), values[-1]]
    for line in lines:
        found |= {key: value for key, value in line.items() if key != "step" and not key.startswith("train/")}
    return found


def array(values: Any) -> str:
    """The hash of a numpy array: kind, shape and bytes."""
    return digest(f"{values.dtype.str}{values.shape}".encode() + values.tobytes())


def arrays(folder: Path) -> Found:
    """All .npy files and .json files below a folder, but for the tokenizer's."""
    import numpy as np

    found: Found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".npy":
            found[name] = array(np.load(file))
        elif file.suffix == ".json":
            content = json.loads(file.read_text())
            small = isinstance(content, dict) and "tokenizer" not in name
            found |= (
                {f"{name}: {key}": value for key, value in flat(content).items()}
                if small
                else {name: digest(repr(content))}
            )
    return found


def tensors(folder: Path) -> Found:
    """Outputs that an evaluation has saved."""
    import torch
    from safetensors.torch import load_file

    found: Found = {}
    for file in sorted(folder.iterdir()):
        name = file.name.removesuffix(".safetensors")  # former versions wrote by torch.save, under the bare name
        if file.is_file() and re.search(r"\.\d+$", name):
            saved = torch.load(file, weights_only=True) if name == file.name else load_file(file)
            for key, value in saved.items() if isinstance(saved, dict) else [("", saved)]:
                content = (
                    value.contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else repr(value).encode()
                )
                found[f"{name} {key}".strip()] = digest(f"{value.dtype}{tuple(value.shape)}".encode() + content)
    return found


def tables(folder: Path) -> Found:
    """The columns of all parquet files, row after row, whatever the files are called."""
    import pyarrow.parquet as pq

    columns: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        split = re.split(r"[-.]", file.name)[0]
        for name, column in pq.read_table(file).to_pydict().items():
            columns.setdefault(split, {}).setdefault(name, []).extend(column)
    return {f"{split} {name}": digest(repr(rows)) for split, part in columns.items() for name, rows in part.items()}


def number_words(text: str) -> bool:
    """A default that is a value and not a sentence."""
    words = text.split()
    return len(words) == 1 or all(re.search(r"[\d_]", word) for word in words)


def options_of(text: str) -> Found:
    """Option -> its other names, what it takes, its choices and its default, out of what --help prints."""
    found: Found = {}
    for line in re.sub(r"\n {10,}(?=\S)", "  ", text).splitlines():  # what is told below a long name belongs to it
        entry = re.match(r"  (-\S.*?|\{\S+\}|[a-zA-Z_=]+)(?:  +(.*))?$", line)
        if not entry or line.startswith("   "):
            continue
        head, told = entry.group(1), entry.group(2) or ""
        names = re.findall(r"(?<![\w-])--?[\w-]+", head) or [head]
        fact: dict[str, Any] = {}
        if len(names) > 1:
            fact["names"] = sorted(names)
        if choices := re.search(r"\{([^}]*)\}", head):
            fact["choices"] = choices.group(1).split(",")
        if re.search(r"\.\.\.", head):
            fact["many"] = True
        if names[0].startswith("-"):
            fact["takes"] = head.split(",")[0].strip() != names[0]
        default = re.search(r"default:? ([^;)]+?)(?:[;)]|$)", told)
        if default and number_words(default.group(1)):
            fact["default"] = default.group(1).strip("'\"")
        found[max(names, key=len)] = fact
    return found


def config_of(text: str) -> Found:
    """The groups and the composed config that Hydra's --help prints."""
    import yaml

    groups = dict(re.findall(r"^(\w+): ([\w, ]+)$", text.split("== Config ==")[0], re.MULTILINE))
    body = text.split("== Config ==")[1].split("\n", 2)[2]
    content = yaml.safe_load(body.split("\nPowered by Hydra")[0])
    return {f"group {name}": sorted(names.split(", ")) for name, names in groups.items()} | flat(content)
