"""Evaluates a text checkpoint with its own config and tokenizer, and writes what was found beside it."""

import json
import sys
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from dataset.files.disk import write_file
from engine.build.held_out import check_split
from engine.build.text import build_text
from engine.build.text_checkpoint import open_text_checkpoint
from engine.checkpoints.hub import OUR_ROOT, is_hub_name
from engine.generate.depth import evaluation_file
from engine.generate.options import InferenceOptions
from engine.runtime.devices import start_runtime
from engine.train.evaluate import evaluate


def infer(options: InferenceOptions) -> None:
    """Evaluate one split and print and write the metrics."""
    split = options.split
    plain = ["gradient_accumulation_steps=1", f"eval_save_outputs=[{','.join(options.save_outputs)}]"]
    checkpoint = open_text_checkpoint(options.opening, [*plain, *options.config_changes])
    config, path = checkpoint.instruct_config, checkpoint.path
    if (config.eval.halt_max_steps or 0) < max(options.depths, default=0):
        raise ValueError(
            f"depths={max(options.depths)}: an override of eval.halt_max_steps={config.eval.halt_max_steps} evaluates "
            "less. Leave it out: --depths decides."
        )
    check_split(checkpoint.stored, config, split, allow_other=options.allow_other_split)
    runtime = start_runtime(config.device, config.compile, config.seed)
    try:
        source = build_text(config, runtime, train=False, held_out=split)
        items, num_batches = source.data.eval_items, source.data.num_eval_batches
        if items is None:
            raise ValueError(
                f"The split {split!r} is empty: no example fell into it with dataset.test_ratio="
                f"{config.dataset.test_ratio} and dataset.seed={config.dataset.seed}. Take --split train, or train "
                "with a larger dataset.test_ratio: another one now would evaluate records that were trained on."
            )
        folder = Path(options.output_dir) if options.output_dir else output_folder(options.opening.path, path, split)
        report = evaluate(
            checkpoint.task(source, runtime),
            islice(items(), options.max_batches and min(options.max_batches, sys.maxsize)),
            source.data.eval_sets,
            runtime,
            num_batches=num_batches if options.max_batches is None else min(num_batches or 0, options.max_batches),
            save_outputs=config.eval_save_outputs,
            output_dir=folder,
            label=path.name,
        )
        if runtime.is_main:
            found = {name: nested(metrics, options.depths) for name, metrics in report.items()}
            write_file(folder / evaluation_file(path, split).name, json.dumps(found, indent=2) + "\n")
            show(found)
            print(f"written to {folder}", file=sys.stderr)
    finally:
        runtime.close()


def output_folder(asked: str, checkpoint: Path, split: str) -> Path:
    """Beside the checkpoint; of one from the Hub, whose cache holds nothing else, where runs are."""
    beside = evaluation_file(checkpoint, split).parent
    return beside if Path(asked).expanduser().exists() or not is_hub_name(asked) else Path(OUR_ROOT, asked, beside.name)


def nested(metrics: dict[str, Any], depths: Collection[int] = ()) -> dict[str, Any]:
    """`depth_3/accuracy` moves to by_depth -> 3 -> accuracy; with `depths`, of these only."""
    plain = {name: value for name, value in metrics.items() if "/" not in name}
    by_depth: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        if "/" in name:
            depth, metric = name.removeprefix("depth_").split("/")
            by_depth.setdefault(int(depth), {})[metric] = value
    return plain | {"by_depth": {depth: by_depth[depth] for depth in sorted(depths or by_depth)}}


def show(report: dict[str, dict[str, Any]]) -> None:
    """Print the nested metrics of every set, those by depth last."""
    print("=== Inference Metrics ===")
    for set_name, metrics in report.items():
        print(f"{set_name}:")
        for name, value in metrics.items():
            if name != "by_depth":
                print(f"  {name}: {value}")
        print("  by_depth:")
        for depth, values in metrics["by_depth"].items():
            shown = ", ".join(f"{name}: {value:.4f}" for name, value in values.items())
            print(f"    {depth}: {{{shown}}}")
