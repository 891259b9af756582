"""The kinds of runs that Hydra configures: puzzles, instruction text and chat."""

import shlex
import sys
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from engine.build import puzzles as build
from engine.build import text as build_text
from engine.build.compiling import Attention, check_attention, compile_networks
from engine.build.held_out import check_split, check_validation_split
from engine.build.puzzles import Source
from engine.build.text import TextSource
from engine.checkpoints.find import TRAINER_FILE
from engine.checkpoints.load import Checkpoint
from engine.checkpoints.run_directory import RunDirectory, named_directory, start_directory
from engine.config.parse import nearest
from engine.config.schema import PretrainConfig, RunConfig
from engine.config.text import ChatConfig, InstructConfig, TextConfig
from engine.entry import starter
from engine.runtime.devices import Runtime
from engine.tasks.protocol import Task
from engine.train.job import Job, RunSettings, RunStart
from engine.train.loop import RunParts
from engine.train.opening import parameter_counts
from engine.train.optimizers import OptimizerSet
from engine.train.plan import Plan
from engine.train.resume import saved_errors, state_of
from engine.train.tracking.tracker import Notices
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

Config = TypeVar("Config", bound=RunConfig)
TextConfigT = TypeVar("TextConfigT", bound=TextConfig)


class HydraJob(Job, Generic[Config]):
    """What puzzles and text have in common: the run directory, the plan and the optimizers."""

    smaller = "a smaller arch.hidden_size, fewer arch.H_cycles or a smaller global_batch_size"
    attention: Attention = "sdpa"  # puzzles have no mask
    to_hold_out = "name a data set with a test split in data_paths_test, or set eval.validation_split"

    def __init__(self, config: Config, arch_label: str = "model", given: Collection[str] | None = None) -> None:
        self.config = config  # from `compose` on with what was fitted to the data
        self.arch_label = arch_label  # begins the name of a run that was given none
        self.given = given  # options that somebody chose, of which none is changed; None: all of them
        self.opened: Source | None = None  # the data, from `compose` on

    @property
    def settings(self) -> RunSettings:
        config = self.config
        return RunSettings(
            config=config.model_dump(mode="json"),
            device=config.device,
            compile=config.compile,
            seed=config.seed,
            collective_minutes=config.collective_timeout,
            resume_from="latest" if config.resume else None,
            start_from=config.load_checkpoint,
            ema_rate=config.ema_rate if config.ema else None,
            ema_start=config.ema_start,
            keep_last=config.keep_last,
            trackers=config.tracker,
            eval_only=config.eval_only,
            to_hold_out=self.to_hold_out,
            lengths=f"epochs={config.total_epochs}"
            + (f" and max_steps={config.max_steps}" if config.max_steps else ""),
        )

    def directory(self, runtime: Runtime, say: Notices) -> RunDirectory:
        return named_directory(self.config, self.arch_label, runtime, say)

    def claim(self, directory: RunDirectory, runtime: Runtime) -> None:
        start_directory(directory, bool(self.config.resume))

    def parts(self, start: RunStart, task: Task, source: Source, *, may_exceed: bool = False) -> RunParts:
        self.opened = source
        if not self.config.eval_only:
            self.fit_length(source.total_steps, start.say)
            start.directory.keep(self.config)
        if source.data.eval_items is not None:
            check_best_metric(self.config.best_metric, task)
        if start.runtime.use_compile:
            compile_networks(head_of(task), start.runtime, self.attention, start.say)
        return RunParts(
            task=task,
            data=source.data,
            plan=self.plan(source, may_exceed),
            checkpoint_yaml=start.directory.config_yaml,
            meta=parameter_counts(task.module) | source.meta,
            files=source.files,
            smaller=self.smaller,
            trainer=None if start.checkpoint is None else self.moved_trainer(start.checkpoint, source),
        )

    def moved_trainer(self, checkpoint: Checkpoint, source: Source) -> dict[str, Any] | None:
        """The trainer state where epochs or intervals between evaluations changed: its place in the data counts those."""
        former, trainer, config = checkpoint.config() or {}, checkpoint.trainer, self.config
        epochs, interval = epochs_of(former), former.get("eval_interval")
        if trainer is None or epochs is None or not isinstance(interval, int | None):
            return None
        epochs_per_iteration = min(interval or epochs, epochs)
        if (epochs, epochs_per_iteration) == (config.total_epochs, config.epochs_per_iteration):
            return None
        with saved_errors(checkpoint.path / TRAINER_FILE):
            state = state_of(trainer)
        before = min((state.iteration - 1) * epochs_per_iteration, epochs)  # the last iteration may be shorter
        first = before - before % config.epochs_per_iteration
        batches = sum(map(source.batches_of, range(first, before))) + state.batches_done
        while batches >= (whole := sum(map(source.batches_of, range(first, first + config.epochs_per_iteration)))):
            first, batches = first + config.epochs_per_iteration, batches - whole
        iteration = first // config.epochs_per_iteration + 1
        state = replace(state, iteration=iteration, batches_done=int(batches))
        return trainer | {"state": asdict(state)}

    def fit_length(self, total_steps: int, say: Notices) -> None:
        """Cut a warm-up that nobody chose to a tenth of the run; say what else of the length is not as it seems."""
        config, longest = self.config, total_steps // 10
        if config.max_steps is not None and total_steps < config.max_steps:
            say(
                f"note: max_steps={config.max_steps} is never reached: epochs={config.total_epochs} are {total_steps} steps. "
                "To train for longer raise epochs"
            )
        if config.lr_warmup_steps > longest:
            found = f"lr_warmup_steps={config.lr_warmup_steps} is more than a tenth of the run's {total_steps} steps"
            if self.given is None or "lr_warmup_steps" in self.given:
                say(f"warning: {found}")
            else:
                say(f"note: the default {found}; warming up for {longest} steps")
                self.config = config.model_copy(update={"lr_warmup_steps": longest})

    def plan(self, source: Source, may_exceed: bool) -> Plan:
        """`may_exceed`: the number of steps is an estimate, and the run ends with its data."""
        config = self.config
        return Plan(
            total_steps=(config.max_steps or sys.maxsize) if may_exceed else source.total_steps,
            expected_steps=source.total_steps,
            iterations=source.iterations,
            first_eval_iteration=config.min_eval_interval + 1,
            save_every_eval=config.checkpoint_every_eval,
            save_every_steps=config.checkpoint_interval,
            log_interval=config.log_interval,
            grad_clip=config.grad_clip,
            max_bad_steps=config.max_bad_steps,
            best_metric=config.best_metric,
            save_outputs=config.eval_save_outputs,
        )

    def optimizers(self, parts: RunParts, runtime: Runtime) -> OptimizerSet:
        return build.build_optimizers(self.config, head_of(parts.task), runtime, parts.plan.expected_steps)

    def resume_command(self, run_dir: Path) -> str:
        """The command that was typed, and what it takes to resume."""
        kept = [a for a in sys.argv[1:] if not a.lstrip("+").startswith(("resume=", "run_name=", "checkpoint_path="))]
        arguments = [a.removeprefix("++") for a in kept]
        return shlex.join([*starter(), sys.argv[0], *arguments, f"checkpoint_path={run_dir}", "resume=true"])


class PuzzleJob(HydraJob[PretrainConfig]):
    """A run on puzzles."""

    def check_held_out(self, checkpoint: Checkpoint) -> None:
        check_validation_split(checkpoint, self.config)

    def compose(self, start: RunStart) -> RunParts:
        config, runtime = self.config, start.runtime
        source = build.build_puzzles(config, runtime)
        if source.data.eval_items is None:
            start.say("no held-out data: none of data_paths has a `test` split, so nothing is evaluated")
        head = build.build_model(config.arch, source.metadata, config.global_batch_size // runtime.world_size, runtime)
        return self.parts(start, build.build_task(config, head, source.metadata, runtime, source.total_steps), source)


class TextJob(HydraJob[TextConfigT]):
    """A run on conversations; what is special of a corpus is how it is opened."""

    smaller = "arch=trm_tiny"

    @property
    def attention(self) -> Attention:  # type: ignore[override]
        return self.config.attention

    @property
    def settings(self) -> RunSettings:
        return replace(super().settings, ema_is_warmed_up=True)  # puzzles keep the plain rate of the reference

    @abstractmethod
    def open_source(self, start: RunStart) -> TextSource:
        """The conversations."""

    def about_held_out(self) -> str:
        """Why there may be no held-out conversations."""
        return "no `test` split"

    def build_task(self, head: TextLossHead, source: TextSource, runtime: Runtime) -> Task:
        return build_text.build_text_task(self.config, head, source, runtime)

    def compose(self, start: RunStart) -> RunParts:
        check_attention(self.config.attention, start.runtime)
        source = self.open_source(start)
        asked, fitting = self.config.global_batch_size, source.global_batch_size
        if fitting < asked:
            start.say(f"note: too few training examples for global_batch_size={asked}; taking {fitting}")
            self.config = self.config.model_copy(update={"global_batch_size": fitting})
        if source.data.eval_items is None:
            start.say(f"no held-out conversations ({self.about_held_out()}), so nothing is evaluated")
        head = build_text.build_text_head(self.config, source.metadata, start.runtime)
        task = self.build_task(head, source, start.runtime)
        return self.parts(start, task, source, may_exceed=head.model.config.recursion == "carry")


class InstructJob(TextJob[InstructConfig]):
    """A run on the instruction corpus."""

    to_hold_out = "train with a dataset.test_ratio above 0"

    def check_held_out(self, checkpoint: Checkpoint) -> None:
        check_split(checkpoint, self.config)

    def open_source(self, start: RunStart) -> TextSource:
        return build_text.build_text(self.config, start.runtime, train=not self.config.eval_only, say=start.say)

    def about_held_out(self) -> str:
        data = self.config.dataset
        return f"dataset.test_ratio={data.test_ratio}, dataset.test_size={data.test_size}"


class ChatJob(TextJob[ChatConfig]):
    """A run on chat data sets."""

    to_hold_out = "build the data set with a smaller --train-split"

    def open_source(self, start: RunStart) -> TextSource:
        return build_text.build_chat(self.config, start.runtime, train=not self.config.eval_only)


def epochs_of(config: dict[str, Any]) -> int | None:
    """How many epochs a run of this config has, over all its corpora."""
    epochs, data = config.get("epochs"), config.get("dataset")
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(epochs, int):
        return None
    return sum(stage.get("epochs") or epochs for stage in stages) if isinstance(stages, list) else epochs


def head_of(task: Task) -> ACTLossHead | TextLossHead:
    head = task.module
    assert isinstance(head, ACTLossHead | TextLossHead)
    return head


def check_best_metric(name: str, task: Task) -> None:
    """Refuse a name that no evaluation of the run will have."""
    known = task.eval_metrics()
    if name not in known:
        plain = [metric for metric in known if "/" not in metric]
        others = " and those of each step, such as depth_1/token_loss" if len(plain) < len(known) else ""
        raise ValueError(
            f"best_metric={name}: the held-out metrics of this run are {', '.join(plain)}{others}"
            f"{nearest(name, known) or '.'}"
        )
