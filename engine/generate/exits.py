"""Where the depth of a generated token is decided: the exit rules, and what was calibrated for a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dataset.files.disk import write_file
from dataset.files.json_file import read_json
from engine.generate.options import ExitKind, ExitRule, ReplyOptions

EXIT_FILE = "exit.json"  # in the folder of a checkpoint: the thresholds that scripts/calibrate_exit.py found
MIN_STEPS: dict[ExitKind, int] = {"kl": 2, "margin": 1, "head": 1}  # before a token may leave: kl compares two


def may_exit(rule: ExitRule, logits: Tensor, before: Tensor, q_halt: Tensor) -> Tensor:
    """Which rows (B,) may leave after a step with these logits (B, V), with `before` those of the step before."""
    assert rule.kind != "none"
    return passes(rule, evidence(rule.kind, logits, before, q_halt))


def passes(rule: ExitRule, found: Tensor) -> Tensor:
    """Where the evidence lets a token leave."""
    assert rule.threshold is not None, "calibrated_options() comes first"
    return found < rule.threshold if rule.kind == "kl" else found >= rule.threshold


def evidence(kind: ExitKind, logits: Tensor, before: Tensor, q_halt: Tensor) -> Tensor:
    """What a rule looks at, for each row: divergence from the step before, lead of the likeliest token, or halting."""
    if kind == "head":
        return torch.sigmoid(q_halt)
    if kind == "margin":
        first, second = logits.softmax(-1).topk(2).values.unbind(-1)
        return first - second
    now, old = logits.log_softmax(-1), before.log_softmax(-1)
    return (now.exp() * (now - old)).sum(-1)


def calibrated_options(options: ReplyOptions, checkpoint: Path) -> ReplyOptions:
    """The options with what was calibrated for the checkpoint: its best rule where depth=auto asks for that, the
    threshold where a rule is given without one, and its number of steps where no depth is given with it."""
    decode = options.decode
    if decode.depth != "auto" and (decode.exit.kind == "none" or decode.exit.threshold is not None):
        return options
    calibration = read_calibration(checkpoint, decode.exit.kind)
    kind = best_kind(calibration) if decode.exit.kind == "none" else decode.exit.kind
    steps = calibration["steps"] if isinstance(calibration.get("steps"), int) else None
    depth = decode.depth if isinstance(decode.depth, int) else steps
    decode = replace(decode, depth=depth, exit=ExitRule(kind, float(calibration[kind]["threshold"])))
    return replace(options, decode=decode)


def read_calibration(checkpoint: Path, kind: str) -> dict[str, Any]:
    """The checkpoint's exit.json, which has a threshold of this kind, or of any where the kind is `none`."""
    file = checkpoint / EXIT_FILE
    remedy = f"Run python scripts/calibrate_exit.py --checkpoint {checkpoint}"
    remedy += ", or give a number of steps." if kind == "none" else ", or give --exit-threshold."
    found = read_json(file, dict, remedy)
    wanted = get_args(ExitKind) if kind == "none" else (kind,)
    if not any(_has_number(found.get(one), "threshold") for one in wanted):
        raise ValueError(f"{file} holds no threshold for {' or '.join(map(repr, wanted))}. {remedy}")
    return found


def best_kind(calibration: Mapping[str, Any]) -> ExitKind:
    """The kind of exit with the smallest mean depth; files of older versions do not name it."""
    kinds: list[ExitKind] = [kind for kind in get_args(ExitKind) if _has_number(calibration.get(kind), "threshold")]
    if calibration.get("best") in kinds:
        kinds = [calibration["best"]]

    def mean_depth(kind: ExitKind) -> float:
        return float(calibration[kind]["mean_depth"]) if _has_number(calibration[kind], "mean_depth") else inf

    return min(kinds, key=mean_depth)


def _has_number(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(name), int | float)


def write_thresholds(checkpoint: Path, report: Mapping[str, Any]) -> Path:
    """Store a calibration with its checkpoint; returns the file."""
    file = checkpoint / EXIT_FILE
    write_file(file, json.dumps(report, indent=2) + "\n")
    return file
