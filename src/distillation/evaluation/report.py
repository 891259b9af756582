"""Needle in a haystack for a student that has been trained: the scores that its run would log, whenever they are wanted."""

import sys
from pathlib import Path
from typing import Any

from engine.checkpoints.load import load_weights
from engine.runtime.devices import start_runtime
from src.distillation.config import DistillConfig
from src.distillation.evaluation.judge import of_checkpoint, wanted_checkpoint
from src.distillation.run import build
from src.distillation.student.arch import student_arch


def needle_report(config: DistillConfig, checkpoint: str | None) -> dict[str, Any]:
    """Of the checkpoint, else the latest of output_dir, else a fresh student; `eval_niah_lengths` and
    `eval_niah_samples` say how long the haystacks are and how many there are of each length and place."""
    loaded = wanted_checkpoint(checkpoint, Path(config.output_dir))
    config = of_checkpoint(config, loaded).model_copy(update={"eval_niah": True})
    runtime = start_runtime(config.device, False, config.seed)
    try:
        corpora = build.open_corpora(config)
        head = build.build_student(config, student_arch(config), corpora.tokenizer, runtime)
        if loaded is None:
            print(
                f"no checkpoint in {config.output_dir}: this is a fresh student, which finds nothing", file=sys.stderr
            )
        else:
            load_weights(head, loaded.weights, source=str(loaded.path))
        scores = [judge.result(None, 0, 1, None) for judge in build.needle_evaluators(config, corpora, head)]
    finally:
        runtime.close()
    return {
        "checkpoint": None if loaded is None else str(loaded.path),
        "step": None if loaded is None else loaded.meta.get("step"),
        "needle": scores[0],
    }
