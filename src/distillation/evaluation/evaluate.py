"""Evaluates a student outside of its run: perplexity on a split of its corpus, needles in haystacks."""

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from engine.checkpoints.load import load_checkpoint, load_weights
from engine.checkpoints.run_directory import latest_in
from engine.inference import nested
from engine.runtime.devices import Runtime, start_runtime
from engine.train.evaluate import evaluate
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import Corpora, open_corpora
from src.distillation.corpus.manifest import Split
from src.distillation.evaluation.options import NeedleConfig, PerplexityConfig
from src.distillation.run import build
from src.distillation.run.provenance import META_KEY
from src.distillation.student.arch import student_arch
from src.distillation.student.head import DistillHead
from src.distillation.task import DistillTask

# What a checkpoint says of its student goes before what the config says.
OF_STUDENT = ("student", "model_variant", "student_overrides", "use_bf16")


def open_student(
    config: NeedleConfig, runtime: Runtime, split: Split = "val"
) -> tuple[DistillConfig, Corpora, DistillHead, dict[str, Any]]:
    """The student of the checkpoint that is named, else of the latest in output_dir, else a fresh one.

    Returns the config with the checkpoint's own facts of the student, the corpora, the student, and the checkpoint and
    step that it is of.
    """
    path, run_dir = config.checkpoint, Path(config.output_dir)
    loaded = latest_in(run_dir, runtime) if path is None else load_checkpoint(path)
    if loaded is not None and META_KEY in loaded.meta:
        trained = loaded.meta[META_KEY]["config"]
        config = config.model_copy(update={key: trained[key] for key in OF_STUDENT})
    corpora = open_corpora(config, split=split)
    head = build.build_student(config, student_arch(config), corpora.tokenizer, runtime)
    if loaded is None:
        print(f"no checkpoint in {config.output_dir}: this is a fresh student, untrained", file=sys.stderr)
        return config, corpora, head, {"checkpoint": None, "step": None}
    load_weights(head, loaded.weights, source=str(loaded.path))
    return config, corpora, head, {"checkpoint": str(loaded.path), "step": loaded.meta.get("step")}


def perplexity_report(config: PerplexityConfig) -> dict[str, Any]:
    """Perplexity of the student, with a teacher also how far it is from it."""
    changes = {"gradient_accumulation_steps": 1} | ({} if config.with_teacher else {"pretrain_ce_only": True})
    with ExitStack() as stack:
        runtime = start_runtime(config.device, False, config.seed)
        stack.callback(runtime.close)
        opened, corpora, head, source = open_student(config.model_copy(update=changes), runtime, config.split)
        if corpora.held_out is None:
            raise ValueError(
                f"{config.train_data_path} holds no documents out. Preprocess with a larger --val-fraction, name another "
                "corpus in val_data_path, or take --split train."
            )
        if config.with_teacher and not build.knows_held_out(config, corpora):
            raise ValueError(
                f"The cache {config.cache_dir} is of {config.train_data_path}, but {config.split} is read from "
                f"{config.val_data_path}. Set teacher_mode=direct cache_logits=false, or leave out --with-teacher."
            )
        teacher = build.teacher_of(opened, corpora, runtime)
        if teacher is not None:
            stack.callback(teacher.close)
        task = DistillTask(head, runtime, teacher, seed=config.seed, total_steps=1)
        most = config.rows or len(corpora.held_out.rows)
        items = build.first_rows(corpora.held_out, most, opened, runtime)
        num_batches = build.batches_of(corpora.held_out, most)
        report = evaluate(task, items, [build.HELD_OUT], runtime, num_batches=num_batches)
    return {"split": config.split, **source, **nested(report[build.HELD_OUT])}


def needle_report(config: NeedleConfig) -> dict[str, Any]:
    """The scores that a run with `eval_niah` would log."""
    with closing(start_runtime(config.device, False, config.seed)) as runtime:
        opened, corpora, head, source = open_student(config.model_copy(update={"eval_niah": True}), runtime)
        (needle,) = build.needle_evaluators(opened, corpora, head)
        return source | {"needle": needle.result(None, 0, 1, None)}
