"""A number of supervision steps that is not the trained one: what the checkpoint's own evaluation says about it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from dataset.files.json_file import read_json
from engine.build.text_checkpoint import LoadedModel
from engine.generate.exits import calibrated_options
from engine.generate.options import ReplyOptions
from engine.train.tracking.metrics_file import METRICS_FILE, read_lines

METRIC = "token_accuracy"  # by which a depth is said to help; the mean over the evaluated sets


def options_for(loaded: LoadedModel, options: ReplyOptions) -> ReplyOptions:
    """The options with what was calibrated for the checkpoint; a depth not known to help gets a notice on standard error."""
    depth, trained = options.decode.depth, loaded.model.config.halt_max_steps
    if isinstance(depth, int) and depth > trained and (reason := doubt(loaded.path, depth, trained)):
        print(f"notice: {reason}", file=sys.stderr)
    return calibrated_options(options, loaded.path)


def evaluation_file(checkpoint: Path, split: str) -> Path:
    """Where inference_instruct.py writes the metrics of a checkpoint unless another folder is asked for."""
    return checkpoint.parent / f"inference_{split}" / f"metrics_{checkpoint.name}.json"


def doubt(checkpoint: Path, depth: int, trained: int) -> str:
    """Why more steps than trained may not help; empty where the evaluation shows that they do."""
    found = [(by_depth.get(str(depth)), by_depth.get(str(trained))) for by_depth in accuracies(checkpoint)]
    pairs = [(deep, usual) for deep, usual in found if deep is not None and usual is not None]
    if not pairs:
        return (
            f"depth={depth} is more than the trained {trained} supervision steps, and the checkpoint was not evaluated "
            f"there. python inference_instruct.py --checkpoint {checkpoint} --depths {trained},{depth} does it."
        )
    deep, usual = (fmean(values) for values in zip(*pairs, strict=True))
    if deep > usual:
        return ""
    return (
        f"depth={depth} does not help this checkpoint: its evaluation has {METRIC} {deep:.3f} there, and {usual:.3f} "
        f"after the trained {trained} supervision steps."
    )


def accuracies(checkpoint: Path) -> Iterator[dict[str, float | None]]:
    """By depth, of every set that inference_instruct.py or the run itself evaluated this checkpoint on."""
    file, metrics_file = evaluation_file(checkpoint, "test"), checkpoint.parent / METRICS_FILE
    if file.is_file():
        for metrics in read_json(file, dict, "Evaluate again.").values():
            by_depth = metrics.get("by_depth") if isinstance(metrics, dict) else None
            if isinstance(by_depth, dict):  # else nothing is known, which the notice says
                yield {depth: values.get(METRIC) for depth, values in by_depth.items() if isinstance(values, dict)}
    for _, line in read_lines(metrics_file) if metrics_file.is_file() else ():
        if checkpoint.name == f"step_{line.get('step')}":
            keys = [key.split("/") for key in line if key.endswith(f"/{METRIC}") and "/depth_" in key]
            for name in {key[0] for key in keys} - {"train"}:
                yield {key[1].removeprefix("depth_"): line["/".join(key)] for key in keys if key[0] == name}
