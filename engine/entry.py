"""What every entry point needs: its start, its result on stdout, and user errors as messages instead of tracebacks."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.runtime.signals import StoppedError

INTERRUPTED = 130  # exit code after Ctrl-C
RECORD = "TORCHELASTIC_ERROR_FILE"  # torchrun gives each rank a file in which to say why it ends


def launch(main: Callable[[Any], None], config_name: str) -> None:
    """Start an entry point with what Hydra makes of the command line and a config of `config/`."""
    with end_of_rank(), user_errors():  # Ctrl-C while the imports take their time, too
        import hydra

        from engine.config.compose import as_additions, store_defaults

        sys.argv[1:] = as_additions(["dry_run=true" if word == "--dry-run" else word for word in sys.argv[1:]])
        store_defaults()
        hydra.main(config_path="config", config_name=config_name, version_base=None)(main)()


@contextmanager
def end_of_rank() -> Iterator[None]:
    """One of several ranks ends with the block, without the interpreter's shutdown.

    Gloo's threads may still hold tensors of the last collective; freeing them in a shutdown aborts the process now and
    then, after all work is done.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    code: Any = 0
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):  # as Python itself would do it
            print(code, file=sys.stderr)
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def starter() -> list[str]:
    """The words that start a program as this one was started: with python, or by torchrun on as many ranks."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return ["python"] if ranks == "1" else ["torchrun", "--nproc-per-node", ranks]


@contextmanager
def user_errors(if_interrupted: str | None = None) -> Iterator[None]:
    """User errors end the program with their message and exit code 1, Ctrl-C ends it with 130, and a training run that a
    signal stopped with 128 and the signal's number.

    `if_interrupted` says what Ctrl-C leaves and how to resume.
    """
    try:
        yield
    except StoppedError as stopped:  # which the run has said already
        leave_record(str(stopped))
        raise SystemExit(stopped.exit_code) from None
    except ConnectionAbortedError as error:  # another rank has ended and leaves the record
        raise SystemExit(f"error: {error}" if is_speaker() else 1) from None
    except (ValueError, OSError, FloatingPointError) as error:
        leave_record(f"error: {error}")
        raise SystemExit(f"error: {error}" if is_speaker() else 1) from None
    except KeyboardInterrupt:
        if is_speaker():
            print(f"\ninterrupted: {if_interrupted or 'what is on disk stays as it is'}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def leave_record(message: str) -> None:
    """Let torchrun repeat why this rank has ended: it prints that last, behind lines of its own."""
    if file := os.environ.get(RECORD):
        Path(file).write_text(json.dumps({"message": message, "timestamp": str(int(time.time()))}), encoding="utf-8")


def is_speaker() -> bool:
    """Whether this process says what ends it; of torchrun's ranks one does, and torchrun speaks for the others."""
    return RECORD not in os.environ or os.environ.get("RANK") == "0"


def show(result: dict[str, Any] | None) -> None:
    """The result of a program: one JSON object on stdout, null for numbers that JSON does not know."""
    if result is not None:
        print(json.dumps(finite(result), allow_nan=False))


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
