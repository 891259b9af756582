"""Two ranks of a program as torchrun starts them, without the seconds that torchrun itself takes."""

import socket
import subprocess
from pathlib import Path

from tests.tiny import ROOT, Ended, Fork, end, start_python

Started = Fork | subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def start_two_ranks(
    door: str, words: list[str], folder: Path, port: int | None = None, is_new: bool = False, **environment: str
) -> list[Started]:
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port or free_port())} | environment
    command = [ROOT / door, *words]
    return [start_python(command, folder, is_new=is_new, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in "01"]


def run_two_ranks(door: str, words: list[str], folder: Path, timeout: float = 280) -> Ended:
    """What rank 0 leaves once both have ended well."""
    ended = [end(rank, timeout) for rank in start_two_ranks(door, words, folder)]
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    return ended[0]
