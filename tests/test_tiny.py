"""A fork that tests start does what a new process does."""

import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.tiny import end, first_line, start_python

PROGRAM = """
import atexit, multiprocessing, os, sys, tempfile, threading, time, warnings

def stay():
    time.sleep(60)

if __name__ == "__main__":
    atexit.register(print, "at its end")
    child = multiprocessing.get_context("fork").Process(target=stay, daemon=True)
    child.start()
    threading.Timer(0.1, lambda: print("of a thread", flush=True)).start()
    print(child.pid)
    print(sys.argv[1:], sys.stdin.read(), os.getcwd(), os.environ["GIVEN"], __name__)
    print([name for name in ("engine.run", "tests.tiny", "beside") if name in sys.modules])
    print(tempfile.gettempdir())
    import beside
    print(beside.__file__)
    warnings.warn("what is old")
    {end}
"""


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("sys.exit('a word')", 1, "a word\n"),
        ("sys.exit(7)", 7, ""),
        ("raise ValueError('a mistake')", 1, "ValueError: a mistake\n"),
        ("pass", 0, ""),
    ],
)
def test_it_says_and_leaves_what_a_program_does(tmp_path: Path, is_new: bool, how: str, code: int, told: str) -> None:
    program = tmp_path / "programs" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("{end}", how))
    (program.parent / "beside.py").write_text("")
    ended = end(
        start_python(
            [program, "--flag", 3], tmp_path, "typed", is_new=is_new, GIVEN="given", TMPDIR=str(program.parent)
        )
    )
    child, words, modules, temporary, beside, *rest = ended.out.splitlines()
    assert words == f"['--flag', '3'] typed {tmp_path} given __main__" and modules == "[]"
    assert temporary == str(program.parent) and tempfile.gettempdir() != temporary
    assert beside == str(program.parent / "beside.py") and rest == ["of a thread", "at its end"]
    assert ended.code == code and "UserWarning: what is old" in ended.err and ended.err.endswith(told)
    assert ("Traceback" in ended.err) == ("raise" in how)
    assert not Path("/proc", child).exists()


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(tmp_path: Path, is_new: bool, number: int) -> None:
    process = start_python(["-c", "import time; print('here', flush=True); time.sleep(60)"], tmp_path, is_new=is_new)
    assert first_line(process) == "here\n"
    time.sleep(0.1)
    process.send_signal(number)
    ended = end(process, 20)
    assert ended.code == -number and ("KeyboardInterrupt" in ended.err) == (number == signal.SIGINT)
