"""The face of the engine: a door hands over its config, this room composes the run and carries it out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.build import puzzles as build
from engine.build import text as build_text
from engine.build.puzzles import PuzzleSource
from engine.build.text import TextSource
from engine.checkpoints.run_folder import RunFolder, tell
from engine.conduct import describe, evaluate_only, plan_of, show_report, train
from engine.config.check import check
from engine.config.compose import resolved
from engine.config.schema import ChatConfig, InstructConfig, PretrainConfig, RunConfig, TextConfig
from engine.entry import user_errors
from engine.inference import infer
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.protocol import Task
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead


def guarded(action: Callable[[], None]) -> None:
    """Faults that a user can mend end in their own words and exit code 1, without a traceback."""
    with user_errors():
        action()


def pretrain(hydra_config: Any) -> None:
    """Train on puzzles or on chat, or evaluate a checkpoint on them."""

    def carry_out() -> None:
        data, arch_label = resolved(hydra_config)
        (_pretrain_chat if data.get("dataset_type") == "chat" else _pretrain)(data, arch_label)

    guarded(carry_out)


def _pretrain(data: dict[str, Any], arch_label: str) -> None:
    config = check(PretrainConfig, data)
    runtime = start_runtime(config.device, config.compile, config.seed)
    try:
        folder = RunFolder.open(config, config.default_project_name(), arch_label, runtime)
        source = build.build_puzzles(config, runtime)
        if source.data.eval_items is None:
            tell(runtime, "no held-out data: none of data_paths has a `test` split, so nothing is evaluated")
        head = build.build_model(config.arch, source.metadata, config.global_batch_size // runtime.world_size, runtime)
        task = build.build_task(config, head, runtime, source.total_steps)
        train_or_judge(config, folder, source, head, task, runtime)
    finally:
        runtime.close()


def pretrain_instruct(hydra_config: Any) -> None:
    """Train on conversations, or evaluate a checkpoint on them."""
    guarded(lambda: _pretrain_instruct(*resolved(hydra_config)))


def _pretrain_instruct(data: dict[str, Any], arch_label: str) -> None:
    config = check(InstructConfig, data)
    options = f"dataset.test_ratio={config.dataset.test_ratio}, dataset.subset_size={config.dataset.subset_size}"
    _pretrain_text(config, arch_label, lambda runtime: build_text.build_text(config, runtime), options)


def _pretrain_chat(data: dict[str, Any], arch_label: str) -> None:
    """`arch.seq_len`, as chat users write it, is how long rows are: a matter of the data."""
    from engine.build import chat as build_chat

    arch = dict(data["arch"])
    seq_len = arch.pop("seq_len", None)
    config = check(ChatConfig, {"seq_len": seq_len} | data | {"arch": arch})
    if config.seq_len is None:
        config = config.model_copy(update={"seq_len": build_chat.data_row_length(config.data_paths)})
    _pretrain_text(config, arch_label, lambda runtime: build_chat.build_chat(config, runtime), "no `test` split")


def _pretrain_text(
    config: TextConfig, arch_label: str, source_on: Callable[[Runtime], TextSource], about_held_out: str
) -> None:
    runtime = start_runtime(config.device, config.compile, config.seed)
    try:
        folder = RunFolder.open(config, config.default_project_name(), arch_label, runtime)
        source = source_on(runtime)
        if source.data.eval_items is None:
            tell(runtime, f"no held-out conversations ({about_held_out}), so nothing is evaluated")
        head = build_text.build_text_head(config, source.metadata, runtime)
        task = build_text.build_text_task(config, head, source, runtime)
        train_or_judge(config, folder, source, head, task, runtime, files=source.tokenizer.files())
    finally:
        runtime.close()


def train_or_judge(
    config: RunConfig,
    folder: RunFolder,
    source: PuzzleSource | TextSource,
    head: ACTLossHead | TextLossHead,
    task: Task,
    runtime: Runtime,
    files: Sequence[Path] = (),
) -> None:
    """What is the same whatever is trained: compile, then evaluate only, or train and report."""
    if runtime.use_compile:
        build.compile_step(head)
    if config.eval_only:
        show_report(evaluate_only(config, task, source.data, runtime, folder.path), runtime)
        return
    tell(runtime, describe(head, runtime), f"{source.total_steps} steps; run folder {folder.path}")
    optimizers = build.build_optimizers(config, head, runtime, source.total_steps)
    is_estimate = isinstance(head, TextLossHead) and head.model.config.recursion == "carry"
    plan = plan_of(config, source.total_steps, source.iterations, may_exceed=is_estimate)
    show_report(train(config, folder, task, source.data, optimizers, plan, runtime, files), runtime)


def infer_instruct(**request: Any) -> None:
    """Evaluate an instruction checkpoint; see `engine.inference.infer` for what may be asked."""
    guarded(lambda: infer(**request))
