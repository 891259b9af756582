"""Checkpoints of puzzles that nobody had to train."""

import json
from pathlib import Path
from typing import Any

from dataset.puzzles.format import read_metadata
from engine.build.puzzles import build_model
from engine.checkpoints.load import Checkpoint
from engine.config.compose import composed
from engine.config.schema import ArchChoice
from tests.tiny import ARCH, CPU, TRM, flags


def untrained(data: Path, arch: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint, in memory, of a model with random weights for this data set."""
    arch = ARCH | (arch or {})
    config = composed("cfg_pretrain", flags(data, data / "run", arch))
    metadata = read_metadata(data, "train")
    choice = ArchChoice.model_validate({"name": TRM, "loss": config["arch"]["loss"]} | arch)
    head = build_model(choice, metadata, rows=1, runtime=CPU)
    meta = {"data": metadata.model_dump(include={"seq_len", "vocab_size", "num_puzzle_identifiers"})}
    return Checkpoint(data / "run" / "step_1", head.state_dict(), config_yaml=json.dumps(config), meta=meta)
