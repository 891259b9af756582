"""`trm` runs every entry point as the program that it is: its words, its exit code, from any directory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trm
from tests.tiny import ROOT

TRM = ROOT / "trm.py"


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRM), *words], capture_output=True, text=True, check=False, cwd=cwd, timeout=60
    )


def test_without_words_it_lists_every_command_in_one_line() -> None:
    for ended in (run(), run("--help")):
        assert ended.returncode == 0 and not ended.stderr
        lines = ended.stdout.splitlines()[2:]
        assert [line.split()[0] for line in lines] == list(trm.PROGRAMS)
        assert all(len(line.split()) > 3 for line in lines)


def test_the_programs_at_the_root_are_all_there() -> None:
    doors = {path.name for path in ROOT.glob("*.py")} - {"trm.py"}
    assert doors <= set(trm.PROGRAMS.values())
    assert all((ROOT / path).is_file() for path in trm.PROGRAMS.values())


def test_an_unknown_command_names_the_nearest() -> None:
    ended = run("trian")
    assert ended.returncode == 2 and "did you mean train?" in ended.stderr and not ended.stdout


def test_words_exit_code_and_directory_are_those_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    ended = run("runs", "mine", cwd=tmp_path)  # found from where it is called
    assert ended.returncode == 1 and "No run below mine" in ended.stderr
    assert run("lm-eval", "--depth", "many", cwd=tmp_path).returncode == 2


def test_hydra_finds_its_configs_from_any_directory(tmp_path: Path) -> None:
    ended = run("train", "recipe=sudoku_4x4", "--cfg", "job", cwd=tmp_path)
    assert ended.returncode == 0 and "global_batch_size" in ended.stdout, ended.stderr
    assert run("distill", "--help", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())


def test_ctrl_c_reaches_the_program(tmp_path: Path) -> None:
    """It is the same process: nobody stands between the terminal and the program."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc")
    program = subprocess.Popen(
        [sys.executable, str(TRM), "bench", "machine"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while f"{os.sep}bench.py" not in Path(f"/proc/{program.pid}/cmdline").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()


def test_a_copy_elsewhere_says_how_to_install(tmp_path: Path) -> None:
    copy = tmp_path / "trm.py"
    copy.write_text(TRM.read_text())
    ended = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "pip install -e ." in ended.stderr
