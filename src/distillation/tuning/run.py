"""Tunes a teacher on a packed corpus: composes model, data and the engine's loop, and writes what came of it."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dataset.tokenization.lookup import open_tokenizer
from engine.checkpoints.load import Checkpoint, load_checkpoint, load_weights, resolve_checkpoint, step_of
from engine.checkpoints.run_folder import tell, to_yaml
from engine.checkpoints.save import CheckpointStore
from engine.runtime.devices import Runtime, start_runtime
from engine.runtime.signals import StopSignal
from engine.tasks.text import perplexity
from engine.train.evaluate import evaluate, flat
from engine.train.loop import Plan, Run, TrainState, fit, restore
from engine.train.optimizers import OptimizerSet, Schedule
from engine.train.tracking import Tracker
from src.distillation.corpus.manifest import TokenizerFacts, load_manifest, tokenizer_facts
from src.distillation.run.ram_disk import corpus_in_memory
from src.distillation.student.optimizer import student_optimizer
from src.distillation.teachers.packed_attention import check_packable, head_of
from src.distillation.tuning.checkpoint import check_output_dir, checkpoint_to_resume, losses_so_far
from src.distillation.tuning.config import TeacherFtConfig
from src.distillation.tuning.corpus import HELD_OUT, open_corpus
from src.distillation.tuning.lora import TunedTeacher, open_teacher_to_tune, save_adapter, save_model
from src.distillation.tuning.task import TeacherTask

WORTHWHILE = 0.10  # a fall of perplexity below which the tuning was hardly worth its time


def finetune(config: TeacherFtConfig) -> dict[str, Any] | None:
    """What came of it, to the main process; None to the others, and if a signal stopped the run on its way."""
    output_dir = Path(config.output_dir)
    check_output_dir(output_dir, config.resume_from)
    with ExitStack() as stack:
        runtime = start_runtime(config.device, compile=False, seed=config.seed)
        stack.callback(runtime.close)
        folder = Path(config.data_path)
        tokenizer = open_tokenizer(config.tokenizer_name)
        facts = tokenizer_facts(config.tokenizer_name, tokenizer)
        load_manifest(folder).check_made_for(folder, facts, None)
        if config.ram_disk:
            folder = stack.enter_context(corpus_in_memory(folder, runtime, cleanup=config.ram_disk_cleanup))
        run, total_steps = compose(config, output_dir, folder, facts, runtime)
        stack.callback(run.tracker.close)
        with StopSignal(announce=runtime.is_main) as stop:
            ended_early = train_until_done(run, stop, config, total_steps)
        if run.store is not None:
            run.store.wait()
        if ended_early is None:
            tell(runtime, f"stopped after step {run.state.step}; go on with: --resume-from {output_dir}")
            return None
        if ended_early:
            tell(
                runtime,
                f"step {run.state.step}: {config.patience} evaluations in a row brought no better loss, so it ends",
            )
        return finish(config, run, tokenizer.files(), ended_early)


def compose(
    config: TeacherFtConfig, output_dir: Path, folder: Path, tokenizer: TokenizerFacts, runtime: Runtime
) -> tuple[Run, int]:
    """The run, standing where it begins or goes on, and how many steps it takes."""
    corpus = open_corpus(config, folder, tokenizer, runtime)
    checkpoint = checkpoint_to_resume(config, corpus.fingerprint)
    dtype = product_type(config.dtype, runtime.device)
    teacher = open_teacher_to_tune(config, tokenizer, dtype).to(runtime.device)
    check_packable(teacher.causal, corpus.seq_len)
    check_vocabulary(teacher, tokenizer)
    if config.gradient_checkpointing:
        save_activations(teacher)
    if checkpoint is not None:
        load_weights(teacher, checkpoint.weights, source=str(checkpoint.path))
    runtime.broadcast_([p for p in teacher.parameters() if p.requires_grad])
    task = TeacherTask(
        teacher, runtime, seed=config.seed, micro_batches=config.gradient_accumulation_steps, dtype=dtype
    )
    total_steps = min(config.max_steps or sys.maxsize, config.epochs * corpus.num_batches)
    optimizer = student_optimizer(
        config.optimizer_type,
        teacher,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    schedule = Schedule(config.warmup_steps, total_steps, config.min_lr / config.learning_rate)
    saved = TrainState(**checkpoint.trainer["state"]) if checkpoint and checkpoint.trainer else TrainState()
    run = Run(
        task=task,
        data=corpus.data,
        optimizers=OptimizerSet(optimizer, config.learning_rate, None, 0.0, schedule),
        plan=plan_of(config, total_steps),
        runtime=runtime,
        tracker=open_tracker(config, output_dir, total_steps, saved, runtime),
        store=CheckpointStore(output_dir, config.keep_last_n) if runtime.is_main else None,
        run_dir=output_dir,
        config_yaml=to_yaml(config.model_dump(mode="json")),
        meta={"corpus": corpus.fingerprint, "trained_parameters": teacher.num_trained()},
    )
    if checkpoint is not None and checkpoint.trainer is not None:
        restore(run, checkpoint.trainer, None)
        tell(runtime, f"resumed from {checkpoint.path}")
    else:
        if runtime.is_main:
            (output_dir / "config.yaml").write_text(run.config_yaml, encoding="utf-8")
        task.base_loss = held_out(run)["loss"]
        run.tracker.log({f"base/{HELD_OUT}/loss": task.base_loss}, 0)
    tell(runtime, f"{teacher.num_trained():,} trained weights, {total_steps} steps, base loss {task.base_loss:.4f}")
    return run, total_steps


def product_type(asked: str, device: torch.device) -> torch.dtype:
    """What matrix products are computed in."""
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def check_vocabulary(teacher: TunedTeacher, tokenizer: TokenizerFacts) -> None:
    size = len(head_of(teacher.causal))
    if size < tokenizer.vocab_size:
        raise ValueError(
            f"The model knows {size} tokens, but the tokenizer {tokenizer.name} of the corpus has {tokenizer.vocab_size}. "
            "Use the model's own tokenizer and preprocess with it, or set vocab_size in init_config."
        )


def save_activations(teacher: TunedTeacher) -> None:
    """Each layer keeps its input alone and is computed again for the gradient."""
    causal = teacher.causal
    # transformers renamed the method; the former name still works, with a warning.
    enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def plan_of(config: TeacherFtConfig, total_steps: int) -> Plan:
    return Plan(
        total_steps=total_steps,
        expected_steps=total_steps,
        iterations=config.epochs,
        first_eval_iteration=config.epochs + 1,  # the end of an epoch is no reason; see train_until_done
        save_every_eval=False,
        save_interval=config.save_interval or None,
        log_interval=config.log_interval,
        grad_clip=config.max_grad_norm,
        best_metric="loss",
    )


def open_tracker(
    config: TeacherFtConfig, output_dir: Path, total_steps: int, saved: TrainState, runtime: Runtime
) -> Tracker:
    return Tracker(
        output_dir,
        backends=config.tracker,
        project="teacher",
        run_name=output_dir.resolve().name,
        config=config.model_dump(mode="json"),
        total_steps=total_steps,
        resume_step=saved.step,
        resume_before_evaluation=saved.evaluated_step != saved.step,
        enabled=runtime.is_main,
    )


def held_out(run: Run) -> dict[str, float]:
    assert run.data.eval_items is not None
    return evaluate(run.task, run.data.eval_items(), run.data.eval_sets, run.runtime)[HELD_OUT]


def train_until_done(run: Run, stop: StopSignal, config: TeacherFtConfig, total_steps: int) -> bool | None:
    """From one evaluation to the next. True: the loss no longer fell; False: all steps were taken; None: a signal came.

    Whether it no longer falls follows from the evaluations alone, so a resumed run ends where an uninterrupted one does.
    """
    every = config.eval_interval or total_steps
    while run.state.step < total_steps:
        if run.runtime.any_rank(run.runtime.is_main and has_stalled(losses_so_far(run), config)):
            return True
        upto = min((run.state.step // every + 1) * every, total_steps)
        run.plan = replace(run.plan, total_steps=upto)
        fit(run, stop)
        if run.runtime.any_rank(stop.requested):
            return None
    return False


def has_stalled(losses: Sequence[float], config: TeacherFtConfig) -> bool:
    """Whether the last `patience` evaluations brought no new best loss, that of the untuned model being the first."""
    best, waited = losses[0], 0
    for loss in losses[1:]:
        is_better = loss < best * (1 - config.min_improvement)
        best, waited = (loss, 0) if is_better else (best, waited + 1)
    return config.patience is not None and waited >= config.patience


def finish(
    config: TeacherFtConfig, run: Run, tokenizer_files: Sequence[Path], ended_early: bool
) -> dict[str, Any] | None:
    """Write the best weights as an adapter and as a whole model, and score what was written."""
    task, runtime = run.task, run.runtime
    assert isinstance(task, TeacherTask) and task.base_loss is not None
    runtime.barrier()  # the best checkpoint is on disk
    best: Checkpoint = load_checkpoint(resolve_checkpoint(run.run_dir))
    load_weights(task.teacher, best.weights, source=str(best.path))
    adapter = model = None
    if task.teacher.has_adapter and runtime.is_main:
        adapter = str(save_adapter(task.teacher, run.run_dir))
    if config.save_merged:
        task.teacher = task.teacher.merged()
        if runtime.is_main:
            model = str(save_model(task.teacher, tokenizer_files, run.run_dir))
    tuned = held_out(run)
    run.tracker.log(flat({"tuned": tuned}), run.state.step)
    base = perplexity(task.base_loss)
    improvement = 1 - tuned["perplexity"] / base
    if improvement < WORTHWHILE:
        tell(
            runtime,
            f"held-out perplexity fell by {improvement:.1%} only, from {base:.2f} to {tuned['perplexity']:.2f}: train for "
            "longer, raise learning_rate, or teach with the model as it was",
        )
    result = {
        "base": {"loss": task.base_loss, "perplexity": base},
        "tuned": {name: tuned[name] for name in ("loss", "perplexity", "accuracy")},
        "improvement": improvement,
        "steps": run.state.step,
        "best_step": step_of(best.path),
        "ended_early": ended_early,
        "trained_parameters": run.meta["trained_parameters"],
        "adapter": adapter,
        "model": model,
    }
    return result if runtime.is_main else None
