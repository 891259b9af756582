"""A chat run that fits into seconds: a few conversations, their data set, and the doors of chat."""

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dataset.build_chat_dataset import main as build
from engine.serve.connections import Bounds
from engine.serve.server import Server, listening_at

ARCH = {
    **{"hidden_size": 32, "num_heads": 2, "expansion": 1, "L_layers": 1, "forward_dtype": "float32"},
}
RUN = {
    **{"device": "cpu", "compile": False, "global_batch_size": 4, "epochs": 2, "eval_interval": 2},
    **{"lr": 1e-2, "lr_warmup_steps": 2, "log_interval": 1},
}
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kit", "Lou")


def conversations() -> list[dict[str, Any]]:
    """Two turns each; the second question needs the first."""
    return [
        {
            "id": f"{name}-{number}",
            "conversations": [
                {"from": "user", "value": f"My name is {name} and I have {number} cats."},
                {"from": "assistant", "value": f"Hello {name}!"},
                {"from": "user", "value": "How many cats do I have?"},
                {"from": "assistant", "value": f"You have {number} cats."},
            ],
        }
        for name in NAMES
        for number in range(2, 6)
    ]


def write_chat_data(folder: Path, *words: str, records: list[dict[str, Any]] | None = None) -> Path:
    """48 conversations of two turns each, about 10 of them held out; or these."""
    source = folder.with_name(f"{folder.name}.json")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(json.dumps(records or conversations()))
    flags = [
        "--input-file",
        str(source),
        "--output-dir",
        str(folder),
        "--format",
        "sharegpt",
        "--tokenizer",
        "train:320",
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build([*flags, "--max-length", "96", "--train-split", "0.8", "--num-workers", "1", *words])
    return folder


def chat_flags(data: Path, run_dir: Path, arch: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    run = RUN | {"data_paths": [str(data)], "checkpoint_path": str(run_dir)} | changes
    options = {f"arch.{key}": value for key, value in (ARCH | (arch or {})).items()} | run
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    return ["--config-name", "cfg_chat", *words]


@contextlib.contextmanager
def served(app: Any, stop: Callable[[], object], bounds: Bounds | None = None) -> Iterator[tuple[Server, int]]:
    """A server on a thread of this process, and its port."""
    listening = listening_at("127.0.0.1", 0)
    server = Server(app, bounds or Bounds(), listening, stop)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
