"""A program that loads a corpus as a run does, alone or as a rank, and prints what memory and time that took."""

import json
import os
import sys
from multiprocessing import active_children
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from engine.build.corpus import load_for_ranks, load_text
from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from engine.runtime.devices import start_runtime

PARTS = 10
TICKS = os.sysconf("SC_CLK_TCK")


def status(name: str) -> int:
    """A size of this process in bytes, as the system calls it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def proportional_size() -> int:
    """Bytes of this process, what it shares divided by those that share it; without libraries, of which any program on
    this machine may take a share."""
    total, is_library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            is_library = ".so" in line
        elif name == "Pss:" and not is_library:
            total += 1024 * int(values[0])
    return total


def processor_seconds() -> float:
    """Of this process and its encoders so far."""
    processes = [os.getpid(), *(child.pid for child in active_children())]
    stats = (Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS


class Parts:
    """Stands in for the progress bar and notes (records, processor seconds) at the start and after each part."""

    found: ClassVar[list[tuple[float, float]]] = []

    def __init__(self, total: float = 0, desc: str = "", **_: Any) -> None:
        self.n, self.total, self.is_of_tokenizing = 0.0, total, desc == "tokenizing"
        self.update(0)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is shown."""

    def update(self, count: float) -> None:
        self.n += count
        if self.is_of_tokenizing and self.n >= len(self.found) * self.total / PARTS:
            self.found.append((self.n, processor_seconds()))


def main(file: str, tokenizer: str) -> None:
    words = [f"dataset.repo={file}", "dataset.subset_size=null", f"dataset.tokenizer_path={tokenizer}"]
    config = check(InstructConfig, composed("cfg_pretrain_instruct", words))
    runtime = start_runtime("cpu")
    load = load_text if runtime.world_size == 1 else load_for_ranks
    before = status("VmRSS")
    with mock.patch("dataset.text.slimorca.tqdm", Parts):
        corpus = load(config, progress=False)
    growth = status("VmHWM") - before
    for store in (corpus.train, corpus.test):
        for part in (store.tokens, store.trained_bits, store.offsets):
            part.sum()  # so that mapped pages are in memory
    runtime.barrier()  # of every rank
    found = {
        "tokens": [len(store.tokens) for store in (corpus.train, corpus.test)],
        "growth": growth,
        "size": proportional_size(),
        "parts": Parts.found,
    }
    runtime.barrier()
    print(json.dumps(found))
    runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
