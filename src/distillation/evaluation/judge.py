"""Evaluates a student on a split of a packed corpus."""

import sys
from pathlib import Path
from typing import Any

from engine.checkpoints.load import Checkpoint, latest_step, load_checkpoint, load_weights
from engine.inference import nested
from engine.runtime.devices import start_runtime
from engine.train.evaluate import evaluate
from src.distillation.config import DistillConfig
from src.distillation.corpus.manifest import Split
from src.distillation.run import build
from src.distillation.run.provenance import META_KEY
from src.distillation.student.arch import student_arch
from src.distillation.task import DistillTask

# What a checkpoint says of its student goes before what the config says.
OF_STUDENT = ("student", "model_variant", "student_overrides", "use_bf16")


def judge(
    config: DistillConfig, *, split: Split, checkpoint: str | None, with_teacher: bool, rows: int | None
) -> dict[str, Any]:
    """Perplexity of the checkpoint (else the latest of output_dir, else a fresh student), with a teacher also how far
    the student is from it."""
    loaded = wanted_checkpoint(checkpoint, Path(config.output_dir))
    config = of_checkpoint(config, loaded)
    config = config.model_copy(update={"gradient_accumulation_steps": 1})
    if not with_teacher:
        config = config.model_copy(update={"pretrain_ce_only": True})
    runtime = start_runtime(config.device, False, config.seed)
    try:
        corpora = build.open_corpora(config, split=split)
        if corpora.held_out is None:
            raise ValueError(
                f"{config.train_data_path} holds no documents out. Preprocess with a larger --val-fraction, name another "
                "corpus in val_data_path, or take --split train."
            )
        head = build.build_student(config, student_arch(config), corpora.tokenizer, runtime)
        if loaded is None:
            print(
                f"no checkpoint in {config.output_dir}: this is a fresh student, which knows nothing", file=sys.stderr
            )
        else:
            load_weights(head, loaded.weights, source=str(loaded.path))
        if with_teacher and not build.knows_held_out(config, corpora):
            raise ValueError(
                f"The cache {config.cache_dir} is of the corpus {config.train_data_path}, but {split} is read from "
                f"{config.val_data_path}. Ask the teacher itself (teacher_mode=direct cache_logits=false), or leave out "
                "--with-teacher."
            )
        teacher = build.teacher_of(config, corpora, runtime)
        try:
            task = DistillTask(head, runtime, teacher, seed=config.seed, total_steps=1)
            most = rows or corpora.held_out.metadata.num_rows
            items = build.first_rows(corpora.held_out, most, config, runtime)
            report = evaluate(task, items, [build.HELD_OUT], runtime)
        finally:
            if teacher is not None:
                teacher.close()
    finally:
        runtime.close()
    return {
        "split": split,
        "checkpoint": None if loaded is None else str(loaded.path),
        "step": None if loaded is None else loaded.meta.get("step"),
        **nested(report[build.HELD_OUT]),
    }


def wanted_checkpoint(asked: str | None, folder: Path) -> Checkpoint | None:
    if asked is not None:
        return load_checkpoint(asked)
    step = latest_step(folder) if folder.is_dir() else None
    return None if step is None else load_checkpoint(folder / f"step_{step}")


def of_checkpoint(config: DistillConfig, loaded: Checkpoint | None) -> DistillConfig:
    facts = loaded.meta.get(META_KEY) if loaded is not None else None
    if facts is None:
        return config
    return config.model_copy(update={key: facts["config"][key] for key in OF_STUDENT})
