"""A text run that fits into a second: a small corpus, a small tokenizer, and the doors of instruction training."""

import json
from pathlib import Path
from typing import Any

from dataset.text.sample_corpus import train_tokenizer
from tests.dataset.instruct_samples import WORDING, make_lines
from tests.tiny import Ended, run_door

ARCH = {
    **{"hidden_size": 32, "num_heads": 2, "expansion": 1, "L_layers": 1, "H_cycles": 1, "L_cycles": 1},
    **{"halt_max_steps": 2, "halt_mean_steps": 1.5, "forward_dtype": "float32"},
}
RUN = {
    **{"device": "cpu", "compile": False, "global_batch_size": 4, "epochs": 2, "lr": 1e-2, "lr_warmup_steps": 2},
    **{"log_interval": 1, "dataset.source": "local", "dataset.seq_len": 72, "dataset.test_ratio": 0.25},
}
# 60 records, 18 of them held out; two of them share a row.


def write_corpus(folder: Path, count: int = 60, vocab_size: int = 400) -> Path:
    """`SlimOrca.jsonl` and `tokenizer.model` in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in make_lines(count)))
    (folder / "tokenizer.model").write_bytes(train_tokenizer(WORDING, vocab_size))
    return folder


def text_flags(data: Path, run_dir: Path, arch: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Command line of a tiny run; `__` in a name stands for a dot."""
    run = RUN | {"dataset.data_dir": str(data), "dataset.tokenizer_path": str(data / "tokenizer.model")}
    run |= {"checkpoint_path": str(run_dir)} | {name.replace("__", "."): value for name, value in changes.items()}
    options = {f"arch.{key}": value for key, value in (ARCH | (arch or {})).items()} | run
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def train_text(arguments: list[str]) -> Ended:
    return run_door("pretrain_instruct.py", *arguments)


def infer_text(*arguments: Any) -> Ended:
    return run_door("inference_instruct.py", *arguments)
