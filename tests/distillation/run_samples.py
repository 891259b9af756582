"""A distillation that fits into a second: a small corpus, a tiny teacher on disk, a tiny student, and the doors."""

import json
from pathlib import Path
from typing import Any

from engine.checkpoints.load import load_checkpoint
from src.distillation.evaluation.perplexity import main as perplexity_main
from src.distillation.scripts.train import main as train_main
from tests.distillation.teacher_samples import write_corpus, write_llama
from tests.tiny import ROOT, Ended, within

RETNET = "hidden_size=32 num_heads=2 H_layers=1 expansion=1"
TRM = "hidden_size=32 num_heads=2 L_layers=1 expansion=1 H_cycles=1 L_cycles=1 halt_max_steps=3 halt_policy=fixed"
OPTIONS: dict[str, Any] = {
    **{"model_variant": "tiny", "student_overrides": RETNET, "max_seq_length": 64, "use_bf16": False},
    **{"physical_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "warmup_batches": 2},
    **{"learning_rate": 1e-2, "min_lr": 1e-3, "weight_decay": 0.01, "teacher_topk": 16, "teacher_dtype": "float32"},
    **{"eval_interval": 0, "eval_perplexity_samples": 4, "log_interval": 1, "device": "cpu", "use_wandb": False},
    **{"eval_niah": False, "eval_niah_samples": 1, "eval_niah_lengths": "24"},
}


def write_world(root: Path) -> Path:
    """`packed`, `tokenizer`, and `teacher`, which both belong to it."""
    write_corpus(root)
    write_llama(root / "teacher", initializer_range=0.3)  # sure of what it says, so that there is something to learn
    return root


def places(root: Path, output: str) -> dict[str, Any]:
    return {
        "train_data_path": root / "packed",
        "val_data_path": root / "packed",
        "tokenizer_name": root / "tokenizer",
        "teacher_model": root / "teacher",
        "cache_dir": root / "cache",
        "output_dir": root / output,
    }


def words(options: dict[str, Any]) -> list[str]:
    """A command line; True and False become --key and --no-key."""
    line = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        line += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return line


def train(root: Path, output: str, *more: str, **changes: Any) -> Ended:
    return train_as_is(*words(OPTIONS | places(root, output) | changes), *more)


def train_as_is(*line: str) -> Ended:
    return within(train_main, [*line])


def perplexity(root: Path, output: str, *more: str, **changes: Any) -> Ended:
    return perplexity_as_is(*words(OPTIONS | places(root, output) | changes), *more)


def perplexity_as_is(*line: str) -> Ended:
    return within(perplexity_main, [*line])


def done(ended: Ended) -> dict[str, Any]:
    """What a program that ended well has printed."""
    assert ended.code == 0, ended.err
    result: dict[str, Any] = json.loads(ended.out)
    return result


def fails(ended: Ended) -> str:
    assert ended.code != 0 and not ended.out, ended.out
    assert "Traceback" not in ended.err
    return ended.err


def measured(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and speeds."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if is_fixed(key)} for line in lines]


def is_fixed(key: str) -> bool:
    return key != "time" and not key.startswith("perf/")


def history(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "provenance.jsonl").read_text().splitlines()]


def end_of(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and the state of optimizer, generator and controller at the end of a run."""
    checkpoint = load_checkpoint(run_dir / "latest", with_trainer=True)
    assert checkpoint.trainer is not None
    return checkpoint.weights, checkpoint.trainer


def shipped(name: str) -> Path:
    return ROOT / "configs" / name
