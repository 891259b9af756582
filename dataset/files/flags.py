"""What the builders' command lines share."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def positive(text: str) -> int:
    """A flag's value that must be a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def not_negative(text: str) -> int:
    """A flag's value that must be a whole number of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def add_common_flags(parser: argparse.ArgumentParser, default_seed: int) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a different data set in the output folder")
    parser.add_argument("--seed", type=not_negative, default=default_seed, help="of every draw (default %(default)s)")


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-workers",
        type=positive,
        default=os.cpu_count() or 1,
        help="processes, where that saves time; the result is the same with any number (default %(default)s)",
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """What is wrong with flags, input or disk ends the program as one message."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
