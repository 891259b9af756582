"""Where the depth of a generated token is decided: the exit rules, and the thresholds calibrated for a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    """The options with the checkpoint's own threshold, where a rule is asked for and no threshold is given."""
    rule = options.decode.exit
    if rule.kind == "none" or rule.threshold is not None:
        return options
    rule = replace(rule, threshold=read_threshold(checkpoint, rule.kind))
    return replace(options, decode=replace(options.decode, exit=rule))


def read_threshold(checkpoint: Path, kind: str) -> float:
    """The calibrated threshold in the checkpoint's exit.json."""
    file = checkpoint / EXIT_FILE
    remedy = f"Run python scripts/calibrate_exit.py --checkpoint {checkpoint}, or give --exit-threshold."
    entry = read_json(file, dict, remedy).get(kind)
    threshold = entry.get("threshold") if isinstance(entry, dict) else None
    if not isinstance(threshold, int | float):
        raise ValueError(f"{file} holds no threshold for {kind!r}. {remedy}")
    return float(threshold)


def write_thresholds(checkpoint: Path, report: Mapping[str, Any]) -> Path:
    """Store a calibration with its checkpoint; returns the file."""
    file = checkpoint / EXIT_FILE
    write_file(file, json.dumps(report, indent=2) + "\n")
    return file
