"""The reading side of checkpoints: find one, check that it is whole, load it, and put its weights into a module."""

import glob
import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from dataset.files.disk import file_sha256

MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_FILE = "trainer.pt"
CONFIG_FILE = "config.yaml"
META_FILE = "meta.json"
REFERENCE_CONFIG_FILE = "all_config.yaml"  # lies beside the checkpoint files that the reference code writes

# These must be exactly what was written; a config file may be edited by hand.
EXACT_FILES = (MODEL_FILE, EMA_FILE, TRAINER_FILE)

# What torch.load raises for files that were cut, changed, or never written by torch.save.
UNREADABLE: tuple[type[Exception], ...] = (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, struct.error)
UNREADABLE += (LookupError, TypeError, AttributeError, AssertionError)

# Part of a weight's name -> the config keys that decide its shape, or whether it exists; the first match counts.
DECIDING_KEYS = {
    "embed_tokens": "the vocabulary of the data or tokenizer, arch.hidden_size",
    "lm_head": "the vocabulary of the data or tokenizer, arch.hidden_size",
    "puzzle_emb": "arch.puzzle_emb_ndim",
    "embed_pos": "arch.pos_encodings, arch.puzzle_emb_len, the sequence length of the data",
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


def step_of(path: Path) -> int | None:
    """The step that a name like step_120 stands for, or None for any other name."""
    match = re.fullmatch(r"step_(\d+)", path.name)
    return int(match[1]) if match else None


def find_damage(folder: Path) -> str | None:
    """What keeps a step folder from being whole, or None; file contents are not read."""
    try:
        recorded = json.loads((folder / META_FILE).read_text(encoding="utf-8"))["files"]
        sizes = {name: int(entry["size"]) for name, entry in recorded.items() if entry["sha256"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        return f"{META_FILE} is missing or unreadable ({problem})"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if name in EXACT_FILES and path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def complete_steps(run_dir: Path) -> dict[int, Path]:
    """Every step folder of a run that is whole, by step in rising order."""
    numbered = sorted((step, path) for path in run_dir.glob("step_*") if (step := step_of(path)) is not None)
    return {step: path for step, path in numbered if path.is_dir() and find_damage(path) is None}


def latest_step(run_dir: Path) -> int | None:
    """The step saved last; what killed writes left does not count."""
    steps = complete_steps(run_dir)
    pointed = step_of((run_dir / "latest").resolve())
    return pointed if pointed in steps else max(steps, default=None)


def resolve_checkpoint(path: str | Path, *, newest: bool = False) -> Path:
    """Find the step folder, or the file written by torch.save, that a path or a glob pattern means.

    A run folder means its `best` step, else its `latest`. A pattern must match one checkpoint, unless newest picks.
    """
    given = Path(path).expanduser()
    if given.exists():
        return _resolve_existing(given)
    found = [Path(name) for name in sorted(glob.glob(str(given)))]
    usable = [
        path
        for path in found
        if (find_damage(path) is None or complete_steps(path) if path.is_dir() else step_of(path) is not None)
    ]
    matches = sorted({_resolve_existing(path).resolve() for path in usable})
    if not matches:
        raise ValueError(f"There is no checkpoint at {given}. {_surroundings(given)}")
    if len(matches) > 1 and not newest:
        names = ", ".join(str(match) for match in matches)
        raise ValueError(f"{given} matches {len(matches)} checkpoints; name one of them: {names}.")
    return max(matches, key=lambda match: (match / META_FILE if match.is_dir() else match).stat().st_mtime_ns)


def _resolve_existing(path: Path) -> Path:
    if path.is_file():
        file = path.resolve()  # a link to a part of a checkpoint stands for the checkpoint
        is_part = file.name in EXACT_FILES and (file.parent / META_FILE).is_file()
        return file.parent if is_part else path
    if step_of(path) is not None or (path / META_FILE).exists():
        damage = find_damage(path)
        if damage is not None:
            raise ValueError(
                f"The checkpoint {path} is not whole: {damage}. Copy the whole folder again or use another one: "
                f"{path.parent} holds {_listing(path.parent)}."
            )
        return path
    if find_damage(path / "best") is None:
        return (path / "best").resolve()
    step = latest_step(path)
    if step is None:
        raise ValueError(f"There is no checkpoint in {path}. {_surroundings(path)}")
    return path / f"step_{step}"


def _surroundings(path: Path) -> str:
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return (
        f"{folder} holds {_listing(folder)}. Give a step folder (step_<N>), a run folder that holds step folders, "
        "or a state dict written by torch.save."
    )


def _listing(folder: Path, limit: int = 20) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def load_checkpoint(path: str | Path, *, with_trainer: bool = False) -> Checkpoint:
    """Load a checkpoint to host memory; anything cut, changed or foreign is a ValueError."""
    found = resolve_checkpoint(path)
    if found.is_file():
        if with_trainer:
            raise ValueError(f"{found} holds weights only: training cannot resume from it, but can load its weights.")
        return _load_reference_file(found)

    meta = json.loads((found / META_FILE).read_text(encoding="utf-8"))
    recorded = meta["files"]
    weights = _load_weights_file(found / MODEL_FILE, recorded)
    ema = _load_weights_file(found / EMA_FILE, recorded) if EMA_FILE in recorded else None
    trainer = None
    if with_trainer:
        _check_contents(found / TRAINER_FILE, recorded)
        trainer = _load_torch_file(found / TRAINER_FILE)
    config = found / CONFIG_FILE
    return Checkpoint(
        path=found,
        weights=weights,
        ema=ema,
        trainer=trainer,
        config_yaml=config.read_text(encoding="utf-8") if config.is_file() else None,
        meta=meta,
        files=[found / name for name in recorded if name not in (*EXACT_FILES, CONFIG_FILE)],
    )


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
        raise ValueError(
            f"{path} is not what was saved: its sha256 differs from the one in {META_FILE}. Copy it again or use "
            f"another checkpoint: {path.parent.parent} holds {_listing(path.parent.parent)}."
        )


def _load_torch_file(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as problem:
        with path.open("rb") as file:
            start = file.read(16)
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes, starting with {start!r}) cannot be read: expected tensors and "
            f"plain values written by torch.save. It may be cut, or hold other Python objects, which are not loaded. "
            f"Copy it again or save only its state dict. ({type(problem).__name__}: {str(problem).splitlines()[:1]})"
        ) from problem
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected a dict as written by torch.save.")
    return loaded


def _load_reference_file(path: Path) -> Checkpoint:
    weights = _load_torch_file(path)
    foreign = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign or not weights:
        found = ", ".join(f"{name!r} ({type(weights[name]).__name__})" for name in foreign[:10]) or "nothing"
        raise ValueError(f"{path} is not a state dict of tensors by name: found {found}. Save model.state_dict().")
    config = path.parent / REFERENCE_CONFIG_FILE
    return Checkpoint(
        path=path,
        weights=strip_prefixes(weights),
        config_yaml=config.read_text(encoding="utf-8") if config.is_file() else None,
    )


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
