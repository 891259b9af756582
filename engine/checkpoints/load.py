"""Loads checkpoints, with checks that they are whole, and puts their weights into a module."""

import glob
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from dataset.files.disk import file_sha256
from engine.checkpoints.find import (
    BEST,
    CONFIG_FILE,
    EMA_FILE,
    EXACT_FILES,
    META_FILE,
    MODEL_FILE,
    REST_FILE,
    TRAINER_FILE,
    checkpoints_at,
    find_damage,
    listing,
)
from engine.checkpoints.hub import REFERENCE_CONFIG_FILE, fetched, is_hub_name
from engine.config.flags import plain_yaml_options
from engine.export.native import OWN_LAYOUT, from_native

OTHER_CONFIG = "Copy the config again, or use another checkpoint."
MAX_CONFIG_BYTES = 100_000

# What torch.load raises for files that were cut, changed, or never written by torch.save.
UNREADABLE: tuple[type[Exception], ...] = (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, struct.error)
UNREADABLE += (LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError)

# Part of a weight's name -> the config keys that decide its shape, or whether it exists; the first match counts.
DECIDING_KEYS = {
    "embed_tokens": "the vocabulary of the data or tokenizer, arch.hidden_size",
    "lm_head": "the vocabulary of the data or tokenizer, arch.hidden_size",
    "puzzle_emb": "arch.puzzle_emb_ndim",
    "embed_pos": "arch.pos_encodings, arch.puzzle_emb_len, the sequence length of the data",
    "around": "arch.board_conv, arch.expansion, arch.hidden_size",
    "mlp_t": "arch.mlp_t, arch.puzzle_emb_len, the sequence length of the data",
    "self_attn": "arch.mlp_t, arch.hidden_size, arch.num_heads, arch.L_layers, arch.H_layers",
    "mlp": "arch.expansion, arch.hidden_size, arch.L_layers, arch.H_layers",
    "": "arch.name, arch.hidden_size",
}


@dataclass
class Checkpoint:
    path: Path
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    trainer: dict[str, Any] | None = None
    config_yaml: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)  # what was saved beside, such as the tokenizer

    def config(self) -> dict[str, Any] | None:
        """What it was trained with; None if it carries no config. Nothing in it refers to this machine."""
        if self.config_yaml is None:
            return None
        return plain_yaml_options(self.config_yaml, f"The config of {self.path}", OTHER_CONFIG)


class DamagedError(ValueError):
    """A checkpoint is not what was saved."""


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def load_checkpoint(
    path: str | Path,
    *,
    with_trainer: bool = False,
    newest: bool = False,
    prefer: str = BEST,
    say: Callable[[str], None] = to_stderr,
) -> Checkpoint:
    """Load a checkpoint to host memory, by any name that `checkpoints_at` takes, else from the Hub; what is foreign is a
    ValueError.

    In place of a damaged one of a run folder another one of that run is taken, which `say` is told; a damaged one that
    was named, and a run without a whole one, is a DamagedError.
    """
    if not Path(path).expanduser().exists() and not glob.glob(str(path)) and is_hub_name(str(path)):
        path = fetched(str(path))
    found = checkpoints_at(path, newest=newest, prefer=prefer)
    damages: list[str] = []
    for each in found:
        try:
            loaded = _load_reference_file(each, with_trainer) if each.is_file() else _load_folder(each, with_trainer)
        except DamagedError as problem:
            damages.append(str(problem))
        else:
            if damages:
                say(f"{' '.join(damages)} Taking {each} instead.")
            if _has_edited_config(loaded):
                say(f"{each / CONFIG_FILE} is not what was saved; what it says now counts.")
            return loaded
    if len(found) == 1 and os.path.realpath(path) == os.path.realpath(found[0]):
        where = found[0].parent
        remedy = f"Copy it again or use another checkpoint: {where} holds {listing(where)}."
    else:
        remedy = (
            f"No other checkpoint in {path} is whole. Copy one again, or start from scratch in another directory "
            "(run_name=... or checkpoint_path=... without resume=true, --output-dir without --resume-from)."
        )
    raise DamagedError(f"{' '.join(damages)} {remedy}")


def _load_folder(folder: Path, with_trainer: bool) -> Checkpoint:
    damage = find_damage(folder)
    if damage is not None:
        raise DamagedError(f"The checkpoint {folder} is not whole: {damage}.")
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    recorded = meta["files"]
    weights = _load_weights_file(folder / MODEL_FILE, recorded)
    if (exported := meta.get("export")) is not None and exported["layout"] != OWN_LAYOUT:
        rest = _load_weights_file(folder / REST_FILE, recorded)
        weights = from_native(weights, rest, exported["layout"], exported["networks"])
    ema = _load_weights_file(folder / EMA_FILE, recorded) if EMA_FILE in recorded else None
    trainer = None
    if with_trainer:
        _check_contents(folder / TRAINER_FILE, recorded)
        trainer = _load_torch_file(folder / TRAINER_FILE)
    files = [folder / name for name in recorded if name not in (*EXACT_FILES, CONFIG_FILE)]
    for file in files:
        _check_contents(file, recorded)
    return Checkpoint(
        path=folder,
        weights=weights,
        ema=ema,
        trainer=trainer,
        config_yaml=_config_text(folder / CONFIG_FILE),
        meta=meta,
        files=files,
    )


def _has_edited_config(loaded: Checkpoint) -> bool:
    """A config may be edited by hand, which weights and trainer state may not."""
    entry = loaded.meta.get("files", {}).get(CONFIG_FILE)
    return entry is not None and file_sha256(loaded.path / CONFIG_FILE) != entry["sha256"]


def _config_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, a config has at most {MAX_CONFIG_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} cannot be read: {problem}. {OTHER_CONFIG}") from problem


def _load_weights_file(path: Path, recorded: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_contents(path, recorded)
    try:
        return strip_prefixes(load_file(path))
    except SafetensorError as problem:
        raise ValueError(f"{path} is not a safetensors file ({problem}). Use another checkpoint.") from problem


def _check_contents(path: Path, recorded: dict[str, Any]) -> None:
    if path.name not in recorded:
        raise ValueError(f"{path.parent} holds no {path.name}, only {', '.join(recorded)}. Use another checkpoint.")
    if file_sha256(path) != recorded[path.name]["sha256"]:
        raise DamagedError(f"{path} is not what was saved: its sha256 differs from the one in {META_FILE}.")


def _load_torch_file(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as problem:
        with path.open("rb") as file:
            start = file.read(16)
        # torch's own text advises to load such a file all the same, which would run the code in it.
        foreign = re.search(r"GLOBAL ([\w.]+)", str(problem))
        found = f"it holds {foreign[1]}" if foreign else f"it may be cut, {type(problem).__name__}"
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes, starting with {start!r}) cannot be read: {found}. Expected tensors and "
            "plain values written by torch.save; other Python objects are never loaded. Copy it again or save only its "
            "state dict."
        ) from problem
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected a dict as written by torch.save.")
    return loaded


def _load_reference_file(path: Path, with_trainer: bool) -> Checkpoint:
    if with_trainer:
        raise ValueError(f"{path} holds weights only: training cannot resume from it, but can load its weights.")
    weights = _load_torch_file(path)
    foreign = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign or not weights:
        found = ", ".join(f"{name!r} ({type(weights[name]).__name__})" for name in foreign[:10]) or "nothing"
        raise ValueError(f"{path} is not a state dict of tensors by name: found {found}. Save model.state_dict().")
    config_yaml = _config_text(path.parent / REFERENCE_CONFIG_FILE)
    return Checkpoint(path=path, weights=strip_prefixes(weights), config_yaml=config_yaml)


def strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what torch.compile and DDP put in front of names."""
    stripped: dict[str, Tensor] = {}
    for name, value in weights.items():
        plain = name.replace("_orig_mod.", "")
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        if plain in stripped:
            raise ValueError(f"The weights hold {plain!r} twice, with and without a prefix; keep one of them.")
        stripped[plain] = value
    return stripped


def load_weights(module: nn.Module, weights: dict[str, Tensor], *, source: str) -> list[str]:
    """Copy weights into the module, all or none, and return notices about what was adapted.

    A puzzle embedding table for other puzzles starts at the mean of the old rows; any other difference is an error.
    """
    own = strip_prefixes(module.state_dict())
    given = strip_prefixes(weights)
    notices: list[str] = []
    problems: dict[str, str] = {}
    for name in own.keys() - given.keys():
        problems[name] = f"{name}: missing there, {_shape(own[name])} here"
    for name in given.keys() - own.keys():
        problems[name] = f"{name}: {_shape(given[name])} there, unknown here"
    for name in own.keys() & given.keys():
        old, new = given[name], own[name]
        if old.shape == new.shape:
            continue
        is_table = name.endswith("puzzle_emb.weights") and old.ndim == new.ndim == 2 and len(old) > 0
        if is_table and old.shape[1] == new.shape[1]:
            given[name] = old.float().mean(dim=0).expand_as(new)
            notices.append(
                f"{name} has {len(old)} rows in {source} and {len(new)} here: every row starts at the mean of the old."
            )
        else:
            problems[name] = f"{name}: {_shape(old)} there, {_shape(new)} here"
    if problems:
        lines = "\n".join(f"  {problems[name]}" for name in sorted(problems))
        keys = sorted({_deciding_keys(name) for name in problems})
        raise ValueError(
            f"The weights of {source} do not fit this model ({len(problems)} differ):\n{lines}\n"
            f"Use the configuration they were trained with. What usually decides: {'; '.join(keys)}."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    return notices


def load_averaged(module: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Put the weights of a checkpoint into the module, the averaged ones where it has them; returns notices."""
    return load_weights(module, checkpoint.weights | (checkpoint.ema or {}), source=str(checkpoint.path))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _deciding_keys(name: str) -> str:
    return next(keys for part, keys in DECIDING_KEYS.items() if part in name)
