"""The command line of a distillation: a flag for every option, in groups; a flag wins over the file, that over defaults."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.config.schema import nearest
from src.distillation.config.flags import add_flag, read_yaml
from src.distillation.config.option_names import REFUSED
from src.distillation.config.run_options import GROUPS
from src.distillation.config.schema import DistillConfig, check_config


class Parser(argparse.ArgumentParser):
    """Says of an unknown flag which one was probably meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [self._about(word) for word in unknown if word.startswith("-")]
            self.error("; ".join(flags) or f"{unknown[0]!r} belongs to no flag")
        return found

    def _about(self, word: str) -> str:
        flag = word.partition("=")[0]
        key = flag.lstrip("-").replace("-", "_")
        if key in REFUSED:
            return f"{flag}: {REFUSED[key]}"
        return f"unknown flag {flag}{nearest(flag, [known for known in self._option_string_actions])}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n{self.prog} --help lists all flags.\n")


def parser_of_run(description: str) -> Parser:
    """`--config`, and every option as a flag below the title of its group."""
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the options below; flags win over it")
    for options in GROUPS:
        group = parser.add_argument_group(str(options.__doc__))
        for name in options.model_fields:
            add_flag(group, name, options.model_fields[name])
        if "divergence" in options.model_fields:
            group.add_argument(
                "--reverse-kl", action="store_true", default=argparse.SUPPRESS, help="same as --divergence reverse_kl"
            )
        if "learning_rate" in options.model_fields:
            group.add_argument(
                "--enable-saddle-interventions",
                action="store_true",
                default=argparse.SUPPRESS,
                help="raise the learning rate for a while when the loss stands still; more in saddle_escape of the YAML",
            )
    return parser


def read_run(parser: Parser, argv: Sequence[str] | None) -> tuple[DistillConfig, argparse.Namespace]:
    """The checked config, and flags that are no options of it; every problem of file and flags is named at once."""
    args = parser.parse_args(argv)
    given = vars(args)
    known = {**DistillConfig.model_fields, "reverse_kl": None}
    flags = {key: value for key, value in given.items() if key in known}
    if given.get("enable_saddle_interventions"):
        flags["saddle_escape"] = {"enabled": True, "interventions_enabled": True}
    file = read_yaml(args.config) if args.config else {}
    return check_config(file, flags), args


def or_exit(parser: Parser, argv: Sequence[str] | None) -> tuple[DistillConfig, argparse.Namespace]:
    """The same for a door: what is wrong ends the program in words."""
    try:
        return read_run(parser, argv)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
