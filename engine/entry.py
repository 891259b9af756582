"""What every entry point needs: its start, its result on stdout, and user errors as messages instead of tracebacks."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.config.compose import as_additions, store_defaults

INTERRUPTED = 130  # exit code after Ctrl-C


def launch(main: Callable[[], None]) -> None:
    """Start an entry point that Hydra decorates."""
    sys.argv[1:] = as_additions(["dry_run=true" if word == "--dry-run" else word for word in sys.argv[1:]])
    store_defaults()
    main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Gloo's threads may still hold tensors of the last collective; freeing them while the interpreter shuts down
        # aborts the process now and then, after all work is done. So leave without that shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def user_errors(if_interrupted: str | None = None) -> Iterator[None]:
    """User errors end the program with their message and exit code 1, Ctrl-C ends it with 130.

    `if_interrupted` says what Ctrl-C leaves and how to resume.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        if if_interrupted is not None:
            print(f"\ninterrupted: {if_interrupted}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def show(result: dict[str, Any] | None) -> None:
    """The result of a program: one JSON object on stdout, null for numbers that JSON does not know."""
    if result is not None:
        print(json.dumps(finite(result), allow_nan=False))


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
