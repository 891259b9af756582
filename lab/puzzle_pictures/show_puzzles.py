"""Draws how a checkpoint solves a few test puzzles: its answer after every supervision step."""

import sys
from pathlib import Path

from dataset.puzzles.samples import game_of, pick_samples
from engine.build import puzzles as build
from engine.checkpoints.load import load_averaged, load_checkpoint
from engine.runtime.devices import start_runtime
from engine.tasks.traces import trace_samples
from lab.drawing import require_matplotlib
from lab.puzzle_pictures.pictures import FORMATS, save_picture

MAX_COUNT = 32  # puzzles of one picture; more would be too small to read


def show_puzzles(
    checkpoint: str, *, data_path: str | None, count: int, seed: int, output: Path, device: str = "auto"
) -> None:
    """Write the picture, and print where it is and how the puzzles went.

    `data_path` defaults to the data that the checkpoint was trained on.
    """
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {output}: expected a name that ends with {' or '.join(FORMATS)}.")
    if count > MAX_COUNT:
        raise ValueError(f"--count {count}: one picture holds at most {MAX_COUNT} puzzles. Take fewer.")
    require_matplotlib()
    loaded = load_checkpoint(checkpoint)
    config = build.puzzle_config(loaded)
    folder = data_path or (config.data_paths_test or config.data_paths)[0]
    metadata, samples = pick_samples(folder, count, seed)
    game = game_of(metadata, folder)
    runtime = start_runtime(device, compile=False, seed=seed)
    try:
        head = build.build_model(config.arch, metadata, len(samples), runtime)
        for notice in load_averaged(head, loaded):
            print(notice, file=sys.stderr)
        traces = trace_samples(head, samples, runtime)
    finally:
        runtime.close()
    save_picture(game, traces, f"{Path(folder).name}, {loaded.path.name}", output)
    print(output, *(trace.summary() for trace in traces), sep="\n")
