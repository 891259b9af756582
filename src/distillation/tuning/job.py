"""Tunes a teacher on a packed corpus: what the engine carries out, and what is written of the tuned model."""

import sys
from pathlib import Path
from typing import Any

from dataset.cursor import RowDataset
from dataset.tokenization.lookup import open_tokenizer
from engine.build.loader import load_batches, train_items
from engine.checkpoints.find import LATEST, TRAINER_FILE, latest_step, step_of
from engine.checkpoints.load import Checkpoint, load_checkpoint, load_weights
from engine.checkpoints.run_directory import RunDirectory, step_directory, to_yaml
from engine.runtime.devices import Runtime
from engine.tasks.text import perplexity
from engine.train.evaluate import Report, evaluate, flat
from engine.train.job import Job, RunSettings, RunStart
from engine.train.loop import Run, RunData, RunParts
from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.plan import Plan
from engine.train.resume import saved_errors
from engine.train.schedule import DecaySchedule
from engine.train.tracking.tracker import Notices
from src.distillation.corpus.corpora import HELD_OUT, packed_reader
from src.distillation.corpus.manifest import Split, load_manifest, tokenizer_facts
from src.distillation.corpus.packed_rows import PackedRows
from src.distillation.run.build import passes_of_rank
from src.distillation.run.job import resuming
from src.distillation.run.ram_disk import corpus_in_memory
from src.distillation.teachers.causal_lm import dtype_of
from src.distillation.teachers.packed_attention import check_packable, check_vocabulary
from src.distillation.tuning.config import TeacherFtConfig
from src.distillation.tuning.lora import open_teacher_to_tune, save_adapter, save_model
from src.distillation.tuning.task import TeacherTask

WORTHWHILE = 0.10  # a fall of perplexity below which the tuning was hardly worth its time
LEARNT_WITH = [
    "teacher_model",
    "init_config",
    "method",
    "lora_rank",
    "lora_alpha",
    "target_modules",
    "optimizer_type",
    "physical_batch_size",
    "gradient_accumulation_steps",
    "seed",
]


class TuneTeacherJob(Job):
    """The tuning of a teacher, with an adapter or as a whole."""

    def __init__(self, config: TeacherFtConfig) -> None:
        self.config = config

    @property
    def settings(self) -> RunSettings:
        config = self.config
        return RunSettings(
            resume_from=config.resume_from,
            keep_last=config.keep_last_n,
            lengths=f"epochs={config.epochs}, max_steps={config.max_steps} or patience={config.patience}",
            trackers=config.tracker,
            config=config.model_dump(mode="json"),
            device=config.device,
            compile=False,
            seed=config.seed,
            collective_minutes=config.collective_timeout,
        )

    def directory(self, runtime: Runtime, say: Notices) -> RunDirectory:
        path = Path(self.config.output_dir)
        return RunDirectory(path, "teacher", path.resolve().name, to_yaml(self.config.model_dump(mode="json")))

    def claim(self, directory: RunDirectory, runtime: Runtime) -> None:
        """Refuse to write where another run has left its checkpoints."""
        path, asked = directory.path, self.config.resume_from
        continues = asked == LATEST or asked is not None and step_directory(asked).parent.resolve() == path.resolve()
        if not continues and (step := latest_step(path)) is not None:
            remedy = f"Resume it with --resume-from {path}, or choose another --output-dir"
            raise ValueError(f"{path} holds checkpoints, the last one of step {step}. {remedy}.")

    def compose(self, start: RunStart) -> RunParts:
        runtime, checkpoint = start.runtime, start.checkpoint
        config, folder = self.config, Path(self.config.data_path)
        passes = passes_of_rank(config.rows_per_step, config.physical_batch_size, runtime.world_size)
        tokenizer = open_tokenizer(config.tokenizer_name)
        facts = tokenizer_facts(config.tokenizer_name, tokenizer)
        manifest = load_manifest(folder)
        manifest.check_made_for(folder, facts, None)
        if config.ram_disk:
            folder = start.stack.enter_context(corpus_in_memory(folder, runtime, cleanup=config.ram_disk_cleanup))
        data, num_batches = open_corpus(config, folder, runtime)
        trainer = None
        if checkpoint is not None:
            check_resumable(checkpoint, config, manifest.fingerprint)
            with saved_errors(checkpoint.path / TRAINER_FILE):
                trainer = resumed_trainer(checkpoint)
        dtype = dtype_of(config.dtype, runtime.device)
        teacher = open_teacher_to_tune(config, facts, dtype).to(runtime.device)
        check_packable(teacher.causal, manifest.max_seq_length)
        check_vocabulary(teacher.causal, facts.vocab_size)
        if config.gradient_checkpointing:
            # transformers renamed the method; the former name still works, with a warning.
            causal = teacher.causal
            enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        runtime.broadcast_([p for p in teacher.parameters() if p.requires_grad])
        task = TeacherTask(teacher, runtime, seed=config.seed, micro_batches=passes, dtype=dtype)
        plan = plan_of(config, min(config.max_steps or sys.maxsize, config.epochs * num_batches))
        start.say(f"{teacher.num_trained():,} trained weights, {plan.total_steps} steps")
        return RunParts(
            task=task,
            data=data,
            plan=plan,
            checkpoint_yaml=start.directory.config_yaml,
            meta={"corpus": manifest.fingerprint, "trained_parameters": teacher.num_trained()},
            trainer=trainer,
        )

    def optimizers(self, parts: RunParts, runtime: Runtime) -> OptimizerSet:
        config = self.config
        optimizer = network_optimizer(
            config.optimizer_type,
            parts.task.module,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        schedule = DecaySchedule(config.warmup_steps, parts.plan.total_steps, config.min_lr / config.learning_rate)
        return OptimizerSet(optimizer, config.learning_rate, None, 0.0, schedule)

    def finish(self, run: Run, report: Report | None, say: Notices) -> dict[str, Any] | None:
        """Write the best weights as an adapter and as a whole model, and score what was written."""
        config, task, runtime, state = self.config, run.task, run.runtime, run.state
        ended_early = state.step < run.plan.total_steps
        if ended_early:
            say(f"step {state.step}: {config.patience} evaluations in a row brought no better loss, so it ends")
        assert isinstance(task, TeacherTask) and state.base_value is not None
        runtime.barrier()  # the best checkpoint is on disk
        best = load_checkpoint(run.run_dir)
        load_weights(task.teacher, best.weights, source=str(best.path))
        adapter = model = None
        if task.teacher.has_adapter and runtime.is_main:
            adapter = str(save_adapter(task.teacher, run.run_dir))
        if config.save_merged:
            task.teacher = task.teacher.merged()
            if runtime.is_main:
                model = str(save_model(task.teacher, open_tokenizer(config.tokenizer_name).files(), run.run_dir))
        assert run.data.eval_items is not None
        items, num_batches = run.data.eval_items(), run.data.num_eval_batches
        tuned = evaluate(task, items, run.data.eval_sets, runtime, num_batches=num_batches)[HELD_OUT]
        run.tracker.log(flat({"tuned": tuned}), state.step)
        base = perplexity(state.base_value)
        improvement = 1 - tuned["perplexity"] / base
        if improvement < WORTHWHILE:
            say(
                f"held-out perplexity fell by {improvement:.1%} only, from {base:.2f} to {tuned['perplexity']:.2f}: train "
                "for longer, raise learning_rate, or teach with the model as it was"
            )
        return {
            "base": {"loss": state.base_value, "perplexity": base},
            "tuned": {name: tuned[name] for name in ("loss", "perplexity", "accuracy")},
            "improvement": improvement,
            "steps": state.step,
            "best_step": step_of(best.path),
            "ended_early": ended_early,
            "trained_parameters": run.meta["trained_parameters"],
            "adapter": adapter,
            "model": model,
        }

    def resume_command(self, run_dir: Path) -> str:
        return resuming(["scripts/finetune_teacher.py"], str(run_dir))


def open_corpus(config: TeacherFtConfig, folder: Path, runtime: Runtime) -> tuple[RunData, int]:
    """What is trained on and what is held out of a packed corpus, and the number of batches of an epoch."""

    def opened(split: Split, rows: int) -> RowDataset:
        packed = PackedRows(folder, split)
        return packed_reader(packed, split, rows, runtime, seed=config.seed, most_held_out=config.eval_samples)

    train = opened("train", config.rows_per_step)
    held_out = opened(HELD_OUT, config.physical_batch_size * runtime.world_size)
    data = RunData(
        train_items=train_items(train, config.num_workers, runtime),
        eval_items=lambda: load_batches(held_out, config.num_workers, runtime),
        num_eval_batches=held_out.num_batches(),
        eval_sets=[HELD_OUT],
    )
    return data, train.num_batches()


def plan_of(config: TeacherFtConfig, total_steps: int) -> Plan:
    return Plan(
        total_steps=total_steps,
        expected_steps=total_steps,
        iterations=config.epochs,
        eval_every_steps=config.eval_interval or total_steps,
        eval_at_start=True,
        save_every_steps=config.save_interval or None,
        log_interval=config.log_interval,
        grad_clip=config.max_grad_norm,
        best_metric="loss",
        patience=config.patience,
        min_improvement=config.min_improvement,
    )


def check_resumable(checkpoint: Checkpoint, config: TeacherFtConfig, corpus_fingerprint: str) -> None:
    """Refuse what was learnt under another config or from another corpus."""
    then = checkpoint.config() or {}
    now = config.model_dump(mode="json")
    changed = [f"{key} was {then.get(key)} and is {now[key]}" for key in LEARNT_WITH if then.get(key) != now[key]]
    if checkpoint.meta.get("corpus") != corpus_fingerprint:
        changed.append(f"the corpus is not the one it was trained on ({config.data_path})")
    if changed:
        remedy = "Set them back, or choose another --output-dir"
        raise ValueError(f"{checkpoint.path} cannot be resumed: {'; '.join(changed)}. {remedy}.")


def resumed_trainer(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's trainer state; one of a former version kept the base loss apart and no patience."""
    assert checkpoint.trainer is not None
    state = dict(checkpoint.trainer["state"])
    if "base_value" not in state:
        base = checkpoint.trainer["task"]["base_loss"]
        best = state["best_value"]
        state |= {"base_value": base, "improved_value": base if best is None else min(base, best)}
    return checkpoint.trainer | {"state": state}
