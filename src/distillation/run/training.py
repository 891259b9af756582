"""Carries a distillation out: into its folder, from the start or a checkpoint, under signal control, to its report."""

import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dataset.files.locks import exclusive_lock
from engine.build.puzzles import compile_step
from engine.checkpoints.load import Checkpoint, load_checkpoint, load_weights
from engine.checkpoints.run_folder import to_yaml
from engine.checkpoints.save import CheckpointStore
from engine.conduct import describe, parameter_counts
from engine.config.schema import ConfigError
from engine.runtime.devices import Runtime, start_runtime
from engine.runtime.signals import StopSignal
from engine.train.loop import Plan, Run, TrainState, fit, restore
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import WITHOUT_EVALUATION, batches_used, standing_at
from src.distillation.run import build
from src.distillation.run.folder import checkpoint_to_resume, make_room, point_at_latest
from src.distillation.run.log import LoggingTracker, RunLog, choose_wandb_mode, uses_wandb
from src.distillation.run.provenance import META_KEY, check_changes, facts_of, record_start
from src.distillation.student.arch import student_arch
from src.distillation.student.head import DistillHead
from src.distillation.student.saddle import PlateauController
from src.distillation.task import DistillTask

PROGRAM = "src.distillation.scripts.train"


def dry_run(config: DistillConfig) -> dict[str, Any]:
    """What a run would do; data and student are opened, the teacher is not, and nothing is written."""
    runtime = start_runtime(config.device, False, config.seed)
    arch = student_arch(config)
    corpora = build.open_corpora(config)
    head = build.build_student(config, arch, corpora.tokenizer, runtime)
    tokens = config.rows_per_step * config.max_seq_length
    return {
        "mode": config.mode,
        "student": config.student,
        **parameter_counts(head),
        "device": str(runtime.device),
        "teacher": None if config.pretrain_ce_only else config.teacher_model,
        "tokens_per_step": tokens,
        "steps": config.max_steps,
        "steps_per_epoch": corpora.train.num_batches(),
        "epochs": round(config.max_steps / corpora.train.num_batches(), 3),
        "held_out_rows": 0 if corpora.held_out is None else len(corpora.held_out.rows),
        "output_dir": config.output_dir,
    }


def train(config: DistillConfig) -> dict[str, Any]:
    """Train and evaluate; returns what to print of it."""
    folder = Path(config.output_dir)
    with ExitStack() as stack:
        runtime = start_runtime(config.device, config.compile, config.seed)
        stack.callback(runtime.close)
        if runtime.world_size > 1:
            raise ValueError(
                f"A distillation runs in one process, found WORLD_SIZE={runtime.world_size}. Start it without torchrun."
            )
        arch = student_arch(config)
        corpora = build.open_corpora(config)
        stack.enter_context(exclusive_lock(folder))
        resumed = resumed_checkpoint(config, folder)
        facts = facts_of(config, corpora.fingerprint, corpora.tokenizer.sha256, None)
        former = None if resumed is None else former_facts(resumed)
        if former is not None:
            check_changes(former, facts, config.rows_per_step)

        head = build.build_student(config, arch, corpora.tokenizer, runtime)
        teacher = build.teacher_of(config, corpora, runtime)
        if teacher is not None:
            stack.callback(teacher.close)
            facts["teacher"] = teacher.facts.fingerprint
        notes = begin(config, head, resumed)
        aside = make_room(folder, None if resumed is None else resumed.path)  # nothing has failed until here
        log = RunLog(folder)
        stack.callback(log.close)
        log.say(*(note for note in (aside, point_at_latest(folder), *notes) if note))
        if runtime.use_compile:
            compile_step(head)

        controller = build.controller_of(config)
        task = DistillTask(
            head,
            runtime,
            teacher,
            seed=config.seed,
            total_steps=config.max_steps,
            micro_batches=config.gradient_accumulation_steps,
            knows_held_out=build.knows_held_out(config, corpora),
            controller=controller,
            checks_first_loss=resumed is None and not config.init_from_teacher,
            warn=log.say,
        )
        run = compose(config, arch, corpora, task, controller, folder, runtime, log, facts, saved_state(resumed))
        stack.callback(run.tracker.close)
        if resumed is not None and former is not None:
            go_on(run, resumed, former, config)
        (folder / "config.yaml").write_text(to_yaml(config.model_dump(mode="json")), encoding="utf-8")
        source = None if resumed is None else str(resumed.path)
        log.say(record_start(folder, run.state.step, former, facts, source))
        log.say(describe(head, runtime), told_lengths(config, corpora))
        if run.data.eval_items is None and config.eval_interval:
            log.say("note: no documents are held out (--val-fraction of the preprocessing), so nothing is evaluated")
        return carry_out(run, log)


def resumed_checkpoint(config: DistillConfig, folder: Path) -> Checkpoint | None:
    path = checkpoint_to_resume(config.resume_from, folder)
    if path is None and config.resume_from is not None:
        print(f"resume: nothing has been saved in {folder} yet, starting from the beginning", file=sys.stderr)
    return None if path is None else load_checkpoint(path, with_trainer=True)


def former_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those of the run that saved it."""
    found = checkpoint.meta.get(META_KEY)
    if not isinstance(found, dict):
        raise ConfigError(
            [
                f"{checkpoint.path} is no checkpoint of a distillation, so this run cannot go on with it. Name another one"
            ]
        )
    return found


def saved_state(checkpoint: Checkpoint | None) -> TrainState:
    return TrainState(**checkpoint.trainer["state"]) if checkpoint is not None and checkpoint.trainer else TrainState()


def begin(config: DistillConfig, head: DistillHead, resumed: Checkpoint | None) -> list[str]:
    """Give the student the weights it begins with; returns what to tell."""
    if resumed is not None:
        return load_weights(head, resumed.weights, source=str(resumed.path))
    notes = build.take_over(config, head.model) if config.init_from_teacher else []
    if "model_variant" in config.model_fields_set and config.student != "retnet":
        notes.append(f"note: model_variant={config.model_variant} is a size of student=retnet and says nothing here")
    return notes


def compose(
    config: DistillConfig,
    arch: dict[str, Any],
    corpora: build.Corpora,
    task: DistillTask,
    controller: PlateauController | None,
    folder: Path,
    runtime: Runtime,
    log: RunLog,
    facts: dict[str, Any],
    saved: TrainState,
) -> Run:
    choose_wandb_mode(config.wandb_mode)
    tracker = LoggingTracker(
        folder,
        log,
        config.log_interval,
        backends=["wandb"] if uses_wandb(config.use_wandb) else [],
        project=config.wandb_project,
        run_name=config.run_name or folder.resolve().name,
        config=config.model_dump(mode="json"),
        total_steps=config.max_steps,
        resume_step=saved.step,
        resume_before_evaluation=saved.evaluated_step != saved.step,
    )
    return Run(
        task=task,
        data=build.run_data(config, corpora, task.head, runtime),
        optimizers=build.student_optimizers(config, task.head, controller),
        plan=Plan(
            total_steps=config.max_steps,
            expected_steps=config.max_steps,
            iterations=sys.maxsize,
            save_every_eval=False,
            save_interval=config.save_interval,
            log_interval=config.log_interval,
            grad_clip=config.max_grad_norm,
            max_bad_steps=config.max_bad_steps,
            best_metric="token_loss",
        ),
        runtime=runtime,
        tracker=tracker,
        store=CheckpointStore(folder, config.keep_last_n),
        run_dir=folder,
        config_yaml=build.checkpoint_yaml(config, arch),
        meta=parameter_counts(task.module) | {META_KEY: facts},
        files=corpora.tokenizer_files,
    )


def go_on(run: Run, checkpoint: Checkpoint, former: dict[str, Any], config: DistillConfig) -> None:
    """Stand where the checkpoint stands; options of the optimizer are those of this run, its memory the checkpoint's."""
    assert checkpoint.trainer is not None and run.optimizers.network is not None
    state = checkpoint.trainer["state"]
    old_stretch = former["config"]["eval_interval"] or WITHOUT_EVALUATION
    new_stretch = config.eval_interval or WITHOUT_EVALUATION
    if former["corpus"] != run.meta[META_KEY]["corpus"]:
        state = standing_at(state, 0, new_stretch)  # another corpus begins at its beginning
    elif old_stretch != new_stretch:
        state = standing_at(state, batches_used(state, old_stretch), new_stretch)
    task = checkpoint.trainer["task"]
    if former["mode"] != config.mode:
        task = {}  # what the controller has seen is another loss
    groups = run.optimizers.network.param_groups
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    restore(run, checkpoint.trainer | {"state": state, "task": task}, None)
    for group, options in zip(run.optimizers.network.param_groups, own, strict=True):
        group.update(options)


def told_lengths(config: DistillConfig, corpora: build.Corpora) -> str:
    epochs = config.max_steps / corpora.train.num_batches()
    tokens = config.rows_per_step * config.max_seq_length
    held_out = 0 if corpora.held_out is None else len(corpora.held_out.rows)
    return f"{config.max_steps} steps of up to {tokens:,} tokens, {epochs:.2f} epochs; {held_out} held-out rows"


def carry_out(run: Run, log: RunLog) -> dict[str, Any]:
    """Fit under signal control; returns the last report with the step and the folder."""
    first, started = run.state.step, time.monotonic()
    assert run.store is not None
    with StopSignal() as stop:
        report = fit(run, stop)
        run.store.wait()
    if not run.plan.is_over(run.state):
        log.say(f"stopped after step {run.state.step}; go on with: {resume_command()}")
    else:
        log.say(f"done: {run.state.step - first} steps in {time.monotonic() - started:.0f} s, see {run.run_dir}")
    return {"output_dir": str(run.run_dir), "step": run.state.step, **(report or {})}


def resume_command() -> str:
    """The command that was typed, and what it takes to go on."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in ("--resume-from", "--resume"):
            next(words, None)
        elif not word.startswith(("--resume-from=", "--resume=")):
            kept.append(word)
    return shlex.join(["python", "-m", PROGRAM, *kept, "--resume-from", "latest"])
