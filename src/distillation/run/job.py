"""A distillation as the engine carries it out: what it consists of, where it writes, and what it may be resumed from."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.build.compiling import check_attention, compile_networks
from engine.checkpoints.find import LATEST, META_FILE, TRAINER_FILE
from engine.checkpoints.load import Checkpoint
from engine.checkpoints.run_directory import RunDirectory, to_yaml
from engine.config.parse import ConfigError
from engine.entry import starter
from engine.runtime.devices import Runtime, start_runtime
from engine.train.evaluate import Report
from engine.train.job import Job, RunSettings, RunStart
from engine.train.loop import Run, RunParts
from engine.train.opening import parameter_counts
from engine.train.optimizers import OptimizerSet
from engine.train.plan import Plan
from engine.train.resume import saved_errors
from engine.train.tracking.tracker import Notices
from src.distillation.cache.format import PROGRAM as CACHE_PROGRAM
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import open_corpora
from src.distillation.run import build
from src.distillation.run.output import make_room, point_at_latest, run_path, runs_of
from src.distillation.run.provenance import META_KEY, check_changes, record_start
from src.distillation.student.arch import student_arch
from src.distillation.student.saddle import PlateauController
from src.distillation.task import DistillTask

FACTS = {"config", "mode", "corpus", "teacher"}  # of a run, that a later one is compared with
PROGRAM = "src.distillation.scripts.train"
ONE_PASS = 10**9  # batches that checkpoints of former versions call a pass where nothing was evaluated


class DistillJob(Job):
    """A teacher into a student, or text alone into one."""

    def __init__(self, config: DistillConfig) -> None:
        self.asked_dir = Path(config.output_dir)
        self.config = config.model_copy(update={"output_dir": str(run_path(config)), "replace": None})

    @property
    def settings(self) -> RunSettings:
        config = self.config
        trackers = ["text", *config.tracker, *(["wandb"] if config.use_wandb else [])]
        if config.use_wandb is False:
            trackers = [name for name in trackers if name not in ("auto", "wandb")]
        return RunSettings(
            trackers=trackers,
            resume_from=config.resume_from,
            keep_last=config.keep_last_n,
            lengths=f"max_steps={config.max_steps}",
            config=config.model_dump(mode="json"),
            device=config.device,
            compile=config.compile,
            seed=config.seed,
            collective_minutes=config.collective_timeout,
        )

    def directory(self, runtime: Runtime, say: Notices) -> RunDirectory:
        config = self.config
        student_arch(config)  # refused before anything is read or written
        check_recording(config, runtime.world_size)
        path = Path(config.output_dir)
        config_yaml = to_yaml(config.model_dump(mode="json"))
        return RunDirectory(path, config.wandb_project, config.run_name or path.resolve().name, config_yaml)

    def compose(self, start: RunStart) -> RunParts:
        config, runtime, checkpoint, say = self.config, start.runtime, start.checkpoint, start.say
        check_attention(config.attention, runtime)
        arch = student_arch(config)
        passes = build.passes_of_rank(config.rows_per_step, config.physical_batch_size, runtime.world_size)
        corpora = open_corpora(config, runtime)
        facts = {  # kept with every checkpoint
            "config": config.model_dump(mode="json"),
            "mode": config.mode,
            "corpus": corpora.manifest.fingerprint,
            "tokenizer": corpora.tokenizer.sha256,
            "teacher": None,
        }
        if checkpoint is not None:
            with saved_errors(checkpoint.path / META_FILE):
                check_changes(former_facts(checkpoint), facts, config.rows_per_step)

        head = build.build_student(config, arch, corpora.tokenizer, runtime)
        teacher = build.teacher_of(config, corpora, runtime)
        if teacher is not None:
            start.stack.callback(teacher.close)
            facts["teacher"] = teacher.facts.fingerprint
        say(*build.coverage(teacher, corpora))
        missing = build.missing_held_out(teacher, corpora)
        if missing and config.eval_perplexity and config.eval_interval:
            of_all = f"{missing} of {len(corpora.held_out_ids)}"
            say(f"note: held-out rows are evaluated without the teacher: the cache lacks {of_all} of them")
        if checkpoint is None:
            if config.init_from_teacher:
                say(*build.take_over(config, head.model))
            if "model_variant" in config.model_fields_set and config.student != "retnet":
                say(f"note: model_variant={config.model_variant} is a size of student=retnet and has no effect here")
        runtime.broadcast_([*head.parameters(), *head.buffers()])
        if runtime.use_compile:
            compile_networks(head, runtime, config.attention, say)
        task = DistillTask(
            head,
            runtime,
            teacher,
            seed=config.seed,
            total_steps=config.max_steps,
            micro_batches=passes,
            knows_held_out=build.knows_held_out(config, corpora) and not missing,
            controller=PlateauController(config.saddle_escape) if config.saddle_escape.enabled else None,
            checks_first_loss=checkpoint is None and not config.init_from_teacher,
            warn=say,
        )
        data = build.run_data(config, corpora, head, runtime)
        if data.eval_items is None and config.eval_interval:
            say("note: no documents are held out (--val-fraction of the preprocessing), so nothing is evaluated")
        epochs = config.max_steps / corpora.train.num_batches()
        tokens = config.rows_per_step * config.max_seq_length
        held_out = 0 if corpora.held_out is None else len(corpora.held_out.rows)
        say(f"{config.max_steps} steps of up to {tokens:,} tokens, {epochs:.2f} epochs; {held_out} held-out rows")
        trainer = None
        if checkpoint is not None:
            with saved_errors(checkpoint.path / TRAINER_FILE):
                trainer = resumed_trainer(checkpoint, facts, corpora.train.num_batches())
        return RunParts(
            task=task,
            data=data,
            plan=plan_of(config),
            checkpoint_yaml=build.checkpoint_yaml(config, arch),
            meta=parameter_counts(head) | {META_KEY: facts},
            files=corpora.tokenizer_files,
            trainer=trainer,
        )

    def optimizers(self, parts: RunParts, runtime: Runtime) -> OptimizerSet:
        task = parts.task
        assert isinstance(task, DistillTask)
        return build.student_optimizers(self.config, task.head, task.controller)

    def clear(self, directory: RunDirectory, checkpoint: Checkpoint | None, say: Notices) -> None:
        """Put another run aside; nothing has failed until here."""
        say(
            *make_room(directory.path, None if checkpoint is None else checkpoint.path),
            *point_at_latest(directory.path),
        )
        if self.config.wandb_mode is not None:  # W&B reads it from the environment; the config goes before it
            os.environ["WANDB_MODE"] = self.config.wandb_mode

    def begin(self, run: Run, checkpoint: Checkpoint | None, say: Notices) -> None:
        others = [path for path in runs_of(self.asked_dir) if path != run.run_dir]
        if others:
            say(
                f"note: this run is in {run.run_dir}; other runs, for --resume-from or --checkpoint: "
                f"{', '.join(map(str, others))}. Programs that are given none of these take {self.asked_dir}; --replace puts a "
                "new run there"
            )
        former, source = (None, None) if checkpoint is None else (former_facts(checkpoint), str(checkpoint.path))
        if run.runtime.is_main:
            say(record_start(run.run_dir, run.state.step, former, run.meta[META_KEY], source))

    def finish(self, run: Run, report: Report | None, say: Notices) -> dict[str, Any]:
        return {"output_dir": str(run.run_dir), "step": run.state.step, **(report or {})}

    def resume_command(self, run_dir: Path) -> str:
        return resuming(["-m", PROGRAM], LATEST if run_dir == self.asked_dir else str(run_dir))


def resuming(program: Sequence[str], resume_from: str) -> str:
    """The command that was typed, with what it takes to resume."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in ("--resume-from", "--resume"):
            next(words, None)
        elif not word.startswith(("--resume-from=", "--resume=")):
            kept.append(word)
    return shlex.join([*starter(), *program, *kept, "--resume-from", resume_from])


def check_recording(config: DistillConfig, ranks: int) -> None:
    """Refuse several ranks that would write into one cache as they go."""
    options = ("cache_logits=true", config.cache_logits), ("on_missing=direct", config.on_missing == "direct")
    found = [told for told, is_asked in options if is_asked]
    if ranks > 1 and found and not config.pretrain_ce_only:
        raise ValueError(
            f"{found[0]} is for one process, found {ranks} ranks: one at a time writes into a cache. Make it before the "
            f"run: {CACHE_PROGRAM} --data-path {config.train_data_path} --output-dir {config.cache_dir} ..."
        )


def dry_run(config: DistillConfig) -> dict[str, Any] | None:
    """What a run would do, on the main rank; data and student are opened, the teacher is not, and nothing is written."""
    runtime = start_runtime(config.device, False, config.seed)
    arch = student_arch(config)
    check_recording(config, runtime.world_size)
    passes = build.passes_of_rank(config.rows_per_step, config.physical_batch_size, runtime.world_size)
    corpora = open_corpora(config, runtime)
    head = build.build_student(config, arch, corpora.tokenizer, runtime)
    if not runtime.is_main:
        return None
    return {
        "mode": config.mode,
        "student": config.student,
        **parameter_counts(head),
        "device": str(runtime.device),
        "ranks": runtime.world_size,
        "passes_per_step": passes,
        "teacher": None if config.pretrain_ce_only else config.teacher_model,
        "tokens_per_step": config.rows_per_step * config.max_seq_length,
        "steps": config.max_steps,
        "steps_per_epoch": corpora.train.num_batches(),
        "epochs": round(config.max_steps / corpora.train.num_batches(), 3),
        "held_out_rows": 0 if corpora.held_out is None else len(corpora.held_out.rows),
        "output_dir": str(run_path(config)),
    }


def plan_of(config: DistillConfig) -> Plan:
    """The corpus is repeated until all steps are taken; passes over it decide nothing."""
    return Plan(
        total_steps=config.max_steps,
        expected_steps=config.max_steps,
        iterations=sys.maxsize,
        eval_every_steps=config.eval_interval or config.max_steps,
        save_every_eval=False,
        save_every_steps=config.save_interval,
        log_interval=config.log_interval,
        grad_clip=config.max_grad_norm,
        max_bad_steps=config.max_bad_steps,
        best_metric="token_loss",
    )


def former_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those of the run that saved it."""
    found = checkpoint.meta.get(META_KEY)
    if not isinstance(found, dict) or not found.keys() >= FACTS or not isinstance(found["config"], dict):
        raise ConfigError([f"{checkpoint.path} is not a checkpoint of a distillation. Name another one"])
    return found


def resumed_trainer(checkpoint: Checkpoint, facts: dict[str, Any], batches_per_epoch: int) -> dict[str, Any]:
    """The checkpoint's trainer state as it fits this run's corpus and mode."""
    assert checkpoint.trainer is not None
    former, state, task = former_facts(checkpoint), dict(checkpoint.trainer["state"]), checkpoint.trainer["task"]
    if former["corpus"] != facts["corpus"]:
        state |= {"iteration": 1, "batches_done": 0}  # another corpus is read from its beginning
    elif "evaluations_waited" not in state:  # written when a pass was what lies between two evaluations
        used = (state["iteration"] - 1) * (former["config"]["eval_interval"] or ONE_PASS) + state["batches_done"]
        state |= {"iteration": used // batches_per_epoch + 1, "batches_done": used % batches_per_epoch}
    if former["mode"] != facts["mode"]:
        task = {}  # what the controller has seen is another loss
    return checkpoint.trainer | {"state": state, "task": task}
