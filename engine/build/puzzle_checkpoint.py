"""Opens a checkpoint of puzzles: its config, the sizes that its data decided, and its weights in a model."""

import sys
from dataclasses import dataclass
from pathlib import Path

from dataset.common import PuzzleDatasetMetadata, text_metadata
from dataset.puzzles.format import read_metadata
from dataset.puzzles.samples import Game, game_of
from engine.build.puzzles import build_model, puzzle_config
from engine.checkpoints.load import Checkpoint, load_averaged
from engine.config.schema import PretrainConfig
from engine.runtime.devices import Runtime, start_runtime
from models.losses.puzzles import ACTLossHead


def is_of_puzzles(stored: Checkpoint) -> bool:
    """Whether a checkpoint was trained on puzzles; one that carries no config is taken for one of text."""
    own = stored.config() or {}
    return bool(own) and "dataset" not in own and own.get("dataset_type") != "chat"


def puzzle_metadata(stored: Checkpoint, data_paths: list[str]) -> PuzzleDatasetMetadata:
    """The sizes that the data decides: as recorded in training, else of the data that the config names."""
    known = stored.meta.get("data")
    if known is None and not (Path(data_paths[0]) / "train").is_dir():
        raise ValueError(
            f"{stored.path} does not say how long its rows are, and its data set {data_paths[0]} is not here. Put the "
            "data set there."
        )
    metadata = (
        read_metadata(Path(data_paths[0]), "train")
        if known is None
        else text_metadata(known["seq_len"], known["vocab_size"], 0)
    )
    table = stored.weights.get("model.inner.puzzle_emb.weights")
    identifiers = metadata.num_puzzle_identifiers if table is None else len(table)
    return metadata.model_copy(update={"num_puzzle_identifiers": identifiers})


@dataclass(frozen=True)
class PuzzleModel:
    """A model, ready to solve, with the board that it was trained on."""

    path: Path
    config: PretrainConfig
    metadata: PuzzleDatasetMetadata
    game: Game
    head: ACTLossHead
    runtime: Runtime


def load_puzzle_model(stored: Checkpoint, device: str | None = None) -> PuzzleModel:
    """The model with the averaged weights where the checkpoint has them, on a device other than the config's if named."""
    config = puzzle_config(stored)
    metadata = puzzle_metadata(stored, config.data_paths)
    game = game_of(metadata, stored.path)
    runtime = start_runtime(device or config.device, compile=False, seed=config.seed)
    head = build_model(config.arch, metadata, 1, runtime)
    for notice in load_averaged(head, stored):
        print(notice, file=sys.stderr)
    return PuzzleModel(stored.path, config, metadata, game, head, runtime)
