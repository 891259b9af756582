"""Evaluates a text checkpoint with its own config and tokenizer, and writes what was found beside it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.build import text as build_text
from engine.checkpoints.load import Checkpoint, load_averaged, load_checkpoint, resolve_checkpoint
from engine.config.check import check
from engine.config.compose import CONFIG_DIR
from engine.config.parse import ConfigError
from engine.config.schema import ChatConfig, InstructConfig, TextConfig
from engine.runtime.devices import start_runtime
from engine.train.evaluate import evaluate


def checkpoint_config(checkpoint: Checkpoint, config_name: str, changes: Sequence[str]) -> TextConfig:
    """The config that the checkpoint was trained with (else the named one), changed by `key=value` words."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    if checkpoint.config_yaml is not None:
        base = OmegaConf.create(checkpoint.config_yaml)
    else:
        print(f"{checkpoint.path} carries no config; taking {config_name}", file=sys.stderr)
        if not (CONFIG_DIR / f"{config_name}.yaml").is_file():
            names = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.yaml")))
            raise ValueError(f"There is no config {config_name!r}. Choose one of {names}.")
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            base = compose(config_name)
        OmegaConf.set_struct(base, False)
    words = [change.removeprefix("++").removeprefix("+") for change in changes]
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ConfigError([f"{word!r} is no key=value" for word in wrong])
    data = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(words)), resolve=True)
    assert isinstance(data, dict)
    if "dataset" not in data and data.get("dataset_type") != "chat":
        raise ValueError(
            f"{checkpoint.path} was not trained on conversations: its config names the data {data.get('data_paths')}. "
            "Evaluate it with pretrain.py eval_only=true load_checkpoint=..., or give an instruction checkpoint."
        )
    config = check(
        InstructConfig if "dataset" in data else ChatConfig, {str(key): value for key, value in data.items()}
    )
    assert isinstance(config, TextConfig)
    return config


def instruct_config(checkpoint: Checkpoint, config_name: str, changes: Sequence[str]) -> InstructConfig:
    """The same of a checkpoint of instruction training, whose data this can load again."""
    config = checkpoint_config(checkpoint, config_name, changes)
    if not isinstance(config, InstructConfig):
        raise ValueError(
            f"{checkpoint.path} was trained on chat: evaluate it with pretrain.py --config-name cfg_chat "
            "eval_only=true load_checkpoint=..., or give an instruction checkpoint."
        )
    return config


@dataclass(frozen=True)
class InferenceOptions:
    """The flags of inference_instruct.py."""

    checkpoint: str | None
    split: str
    save_outputs: Sequence[str]
    output_dir: str | None
    tokenizer_path: str | None
    data_dir: str | None
    subset_size: int | None
    seq_len: int | None
    batch_size: int | None
    max_batches: int | None
    config_name: str
    overrides: Sequence[str]
    project_name: str
    run_name: str | None

    def as_config_words(self) -> list[str]:
        """The flags that stand for config keys."""
        keys = {
            "dataset.tokenizer_path": self.tokenizer_path,
            "dataset.data_dir": self.data_dir,
            "dataset.subset_size": self.subset_size,
            "dataset.seq_len": self.seq_len,
            "global_batch_size": self.batch_size,
        }
        return [f"{key}={value}" for key, value in keys.items() if value is not None]


def infer(options: InferenceOptions) -> None:
    """Evaluate one split and print and write the metrics."""
    split, max_batches = options.split, options.max_batches
    if options.checkpoint is None and options.run_name is None:
        raise ValueError(
            "Name the checkpoint: --checkpoint <folder or file>, or --run-name <run> (and --project-name)."
        )
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"--max-batches={max_batches}: at least 1 batch is needed to measure anything.")
    path = resolve_checkpoint(options.checkpoint or Path("checkpoints") / options.project_name / str(options.run_name))
    loaded = load_checkpoint(path)
    own_tokenizer = [f"dataset.tokenizer_path={file}" for file in loaded.files[:1]]
    plain = ["resume=false", "gradient_accumulation_steps=1", f"eval_save_outputs=[{','.join(options.save_outputs)}]"]
    words = [*own_tokenizer, *plain, *options.as_config_words(), *options.overrides]
    config = instruct_config(loaded, options.config_name, words)

    runtime = start_runtime(config.device, config.compile, config.seed)
    try:
        source = build_text.build_text(config, runtime, train=False, held_out=split)
        items = source.data.eval_items
        if items is None:
            raise ValueError(
                f"The split {split!r} is empty: no example fell into it with dataset.subset_size="
                f"{config.dataset.subset_size} and dataset.test_ratio={config.dataset.test_ratio}. "
                "Raise --subset-size, set --overrides dataset.test_ratio=0.2, or take --split train."
            )
        head = build_text.build_text_head(config, source.metadata, runtime)
        load_averaged(head, loaded)
        task = build_text.build_text_task(config, head, source, runtime)
        folder = Path(options.output_dir) if options.output_dir else path.parent / f"inference_{split}"
        report = evaluate(
            task,
            islice(items(), max_batches),
            source.data.eval_sets,
            runtime,
            save_outputs=config.eval_save_outputs,
            output_dir=folder,
            label=path.name,
        )
        if runtime.is_main:
            (metrics,) = report.values()
            found = {split: nested(metrics)}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"metrics_{path.name}.json").write_text(json.dumps(found, indent=2) + "\n")
            show(found)
            print(f"written to {folder}", file=sys.stderr)
    finally:
        runtime.close()


def nested(metrics: dict[str, Any]) -> dict[str, Any]:
    """`depth_3/accuracy` moves to by_depth -> 3 -> accuracy."""
    plain = {name: value for name, value in metrics.items() if "/" not in name}
    by_depth: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        if "/" in name:
            depth, metric = name.removeprefix("depth_").split("/")
            by_depth.setdefault(int(depth), {})[metric] = value
    return plain | {"by_depth": dict(sorted(by_depth.items()))}


def show(report: dict[str, dict[str, Any]]) -> None:
    print("=== Inference Metrics ===")
    for split, metrics in report.items():
        print(f"{split}:")
        for name, value in metrics.items():
            if not isinstance(value, dict):
                print(f"  {name}: {value}")
        print("  by_depth:")
        for depth, values in metrics["by_depth"].items():
            shown = ", ".join(f"{name}: {value:.4f}" for name, value in values.items())
            print(f"    {depth}: {{{shown}}}")
