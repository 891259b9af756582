"""Evaluates a student outside of its run: perplexity on a split of its corpus, needles in haystacks."""

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

from engine.checkpoints.find import META_FILE
from engine.checkpoints.load import load_checkpoint, load_weights
from engine.checkpoints.run_directory import latest_in
from engine.config.parse import ConfigError, parse
from engine.inference import nested
from engine.runtime.devices import Runtime, start_runtime
from engine.train.evaluate import evaluate
from engine.train.resume import saved_errors
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import HELD_OUT, Corpora, open_corpora
from src.distillation.corpus.manifest import Split
from src.distillation.evaluation.options import NeedleConfig, PerplexityConfig
from src.distillation.run import build
from src.distillation.run.output import runs_of
from src.distillation.run.provenance import META_KEY
from src.distillation.student.arch import student_arch
from src.distillation.student.head import DistillHead
from src.distillation.task import DistillTask

# What a checkpoint says of its student goes before what the config says.
OF_STUDENT = ("student", "model_variant", "student_overrides", "use_bf16")
# What is of the machine or of this call, and never of the run that is evaluated.
OF_CALL = ("output_dir", "resume_from", "device", "compile", "attention", "num_workers", "verify_data")
Config = TypeVar("Config", bound=NeedleConfig)


def open_student(
    config: Config, runtime: Runtime, split: Split = "val"
) -> tuple[Config, Corpora, DistillHead, dict[str, Any]]:
    """The student of the checkpoint that is named, else of the latest in output_dir, else a fresh one.

    Returns the config with the run's own options where none were given, the corpora, the student, and which run it is of.
    """
    asked_dir = Path(config.output_dir)
    loaded = latest_in(asked_dir, runtime) if config.checkpoint is None else load_checkpoint(config.checkpoint)
    planned = None
    if loaded is not None and META_KEY in loaded.meta:
        with saved_errors(loaded.path / META_FILE):
            trained = loaded.meta[META_KEY]["config"]
            config, planned = with_trained(config, trained), trained["max_steps"]
    corpora = open_corpora(config, runtime, split=split)
    head = build.build_student(config, student_arch(config), corpora.tokenizer, runtime)
    if loaded is None:
        print(f"no checkpoint in {asked_dir}: this is a fresh student, untrained", file=sys.stderr)
        return config, corpora, head, dict.fromkeys(("checkpoint", "run_dir", "step", "steps_planned"))
    load_weights(head, loaded.weights, source=str(loaded.path))
    source = {
        "checkpoint": str(loaded.path),
        "run_dir": str(loaded.path.parent),
        "step": loaded.meta.get("step"),
        "steps_planned": planned,
    }
    print("measuring {run_dir}, step {step} of {steps_planned} planned".format_map(source), file=sys.stderr)
    others = [str(run) for run in runs_of(asked_dir) if run != asked_dir]
    if others and config.checkpoint is None:
        print(f"note: there are other runs, for --checkpoint: {', '.join(others)}", file=sys.stderr)
    return config, corpora, head, source


def with_trained(config: Config, trained: dict[str, Any]) -> Config:
    """The config with the options of the run that made the checkpoint: those of its student, and all that was not given."""
    known = DistillConfig.model_fields.keys() - set(OF_CALL)
    of_run = {key: value for key, value in trained.items() if key in known}
    of_student = {key: trained[key] for key in OF_STUDENT}
    found, problems = parse(type(config), of_run | config.model_dump(include=config.model_fields_set) | of_student)
    if found is None:
        raise ConfigError(problems)
    return found


def perplexity_report(config: PerplexityConfig) -> dict[str, Any] | None:
    """Perplexity of the student, with a teacher also how far it is from it; None on all ranks but the first."""
    changes: dict[str, Any] = {"eval_perplexity_samples": config.rows or sys.maxsize}
    changes |= {"pretrain_ce_only": not config.with_teacher}
    with ExitStack() as stack:
        runtime = start_runtime(config.device, False, config.seed)
        stack.callback(runtime.close)
        changes |= {"gradient_accumulation_steps": runtime.world_size}  # rows of training, which are not read
        opened, corpora, head, source = open_student(config.model_copy(update=changes), runtime, config.split)
        if corpora.held_out is None:
            raise ValueError(
                f"{opened.train_data_path} holds no documents out. Preprocess with a larger --val-fraction, name another "
                "corpus in val_data_path, or take --split train."
            )
        if config.with_teacher and not build.knows_held_out(opened, corpora):
            raise ValueError(
                f"The cache {opened.cache_dir} is of {opened.train_data_path}, but {config.split} is read from "
                f"{opened.val_data_path}. Set teacher_mode=direct cache_logits=false, or leave out --with-teacher."
            )
        teacher = build.teacher_of(opened, corpora, runtime)
        if teacher is not None:
            stack.callback(teacher.close)
        missing = build.missing_held_out(teacher, corpora)
        if missing and runtime.is_main:
            print(f"note: the cache lacks {missing} of these rows, so the teacher is left out", file=sys.stderr)
        task = DistillTask(head, runtime, teacher, seed=config.seed, total_steps=1, knows_held_out=not missing)
        items, num_batches = build.held_out_items(corpora.held_out, opened, runtime), corpora.held_out.num_batches()
        report = evaluate(task, items, [HELD_OUT], runtime, num_batches=num_batches)
    return {"split": config.split, **source, **nested(report[HELD_OUT])} if runtime.is_main else None


def needle_report(config: NeedleConfig) -> dict[str, Any]:
    """The scores that a run with `eval_niah` would log."""
    with closing(start_runtime(config.device, False, config.seed)) as runtime:
        opened, corpora, head, source = open_student(config.model_copy(update={"eval_niah": True}), runtime)
        (needle,) = build.needle_evaluators(opened, corpora, head)
        return source | {"needle": needle.result(None, 0, 1, None)}
