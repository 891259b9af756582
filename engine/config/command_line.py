"""A command line made from frozen dataclasses: each option is a field with its default, its help and its flag.

Texts are taken as they are typed, and nothing but argparse is imported, so that `--help` is quick.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass, replace
from typing import Any, TypeVar

from engine.entry import user_errors

Options = TypeVar("Options")


def flag(default: Any, help: str | None = None, at_least: float | None = None, **how: Any) -> Any:
    """A dataclass field that is also a flag; `how` goes to `add_argument`, `flags` are its spellings."""
    return field(default=default, metadata={"flag": {"help": help} | how, "at_least": at_least})


def part(default: Any, only: Sequence[str] | None = None, **changes: dict[str, Any]) -> Any:
    """A field that holds more options: `only` names those that are flags, `changes` what differs about them here."""
    return field(default=default, metadata={"only": only, "changes": changes})


class Bounded:
    """Options whose numbers keep their `at_least`."""

    def __post_init__(self) -> None:
        for option in fields(self):  # type: ignore[arg-type]  # every class below is a dataclass
            least, value = option.metadata.get("at_least"), getattr(self, option.name)
            if least is not None and isinstance(value, int | float) and not value >= least:
                raise ValueError(f"{option.name}={value}: expected at least {least}.")


@contextmanager
def command_line(defaults: Options, description: str | None) -> Iterator[Options]:
    """The options `defaults` with the flags of the command line; within, faults of the user end in words."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_flags(parser, defaults, None, {})
    with user_errors():
        yield _with_flags(defaults, parser.parse_args())


def _add_flags(
    parser: argparse.ArgumentParser, options: Any, only: Sequence[str] | None, changes: Mapping[str, dict[str, Any]]
) -> None:
    choice = None
    for option in fields(options):
        default = getattr(options, option.name)
        if is_dataclass(default):
            own = option.metadata
            _add_flags(parser, default, own["only"] or only, {**changes, **own["changes"]})
        elif "flag" in option.metadata and (only is None or option.name in only):
            how = {"dest": option.name, "flags": [f"--{option.name.replace('_', '-')}"]}
            how["default"] = list(default) if isinstance(default, tuple) else default  # lists are what "append" copies
            how |= option.metadata["flag"] | changes.get(option.name, {})
            target: Any = parser
            if how.pop("is_choice", False):
                target = choice = choice or parser.add_mutually_exclusive_group(required=True)
            target.add_argument(*how.pop("flags"), **how)


def _with_flags(defaults: Options, flags: argparse.Namespace) -> Options:
    """The options `defaults`, changed by the flags."""
    changed = {}
    for option in fields(defaults):  # type: ignore[arg-type]  # any of the dataclasses above
        value = getattr(defaults, option.name)
        changed[option.name] = _with_flags(value, flags) if is_dataclass(value) else getattr(flags, option.name, value)
    return replace(defaults, **changed)  # type: ignore[type-var]
