"""A process that has imported the libraries once and forks for every program: a run starts in no time, and is a process
of its own all the same. It imports nothing of the tree. Reads requests from stdin, one JSON object a line."""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import Any

LIBRARIES = (
    *("torch", "torch._dynamo", "numpy", "hydra", "omegaconf", "pydantic", "yaml", "tqdm", "safetensors.torch"),
    *("tokenizers", "sentencepiece", "pyarrow", "pyarrow.parquet", "transformers", "peft"),
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
)


def become(request: dict[str, Any]) -> None:
    """In the forked process: run the program as `python <command>` would."""
    for number, name, flags in (
        (0, request["stdin"], os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        file = os.open(name, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.chdir(request["cwd"])
    sys.argv = request["command"]
    if sys.argv[0] == "-m":
        sys.path[0] = request["root"]
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


def leave_as_a_program(request: dict[str, str]) -> None:
    """Run it and end the process the way the interpreter ends one."""
    code: Any = 0
    is_interrupted = False
    try:
        become(request)
    except SystemExit as leave:
        code = leave.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        is_interrupted = True
    except BaseException:  # noqa: BLE001 - what Python itself prints for any of them
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        if is_interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code or 0)


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False  # what the tree's modules compile to, outside it
    print("ready", flush=True)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            return  # and leave as every program does
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
