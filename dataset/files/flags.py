"""What the builders' command lines share."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def at_least(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """The type of a flag whose value must be a whole number of at least `smallest` and at most `largest`."""

    def whole_number(text: str) -> int:  # argparse names it in its error
        number = int(text)
        if number < smallest:
            raise argparse.ArgumentTypeError(f"{number} is not {smallest} or more")
        if largest is not None and number > largest:
            raise argparse.ArgumentTypeError(f"{number} is not from {smallest} to {largest}")
        return number

    return whole_number


positive, not_negative = at_least(1), at_least(0)
seed = at_least(0, 2**32 - 1)  # what every generator takes


def add_common_flags(parser: argparse.ArgumentParser, default_seed: int) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a different data set in the output folder")
    parser.add_argument("--seed", type=seed, default=default_seed, help="of every draw (default %(default)s)")


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-workers",
        type=positive,
        default=os.cpu_count() or 1,
        help="processes, where that saves time; the result is the same with any number (default %(default)s)",
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """What is wrong with flags, input or disk ends the program as one message, Ctrl-C with exit code 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
