"""One flag for every field of a config, so that a YAML file and the command line know the same options.

A flag counts only if it is given; then it stands above the file, which stands above the defaults.
"""

import argparse
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.config.schema import ConfigError, parse

Config = TypeVar("Config", bound=BaseModel)
NOTHING = ("null", "none")  # how a flag says that there is no value


def read_config(config_class: type[Config], argv: Sequence[str] | None, description: str) -> Config:
    """The checked config of a command line; every problem of file and flags is named at once."""
    args = vars(parser_of(config_class, description).parse_args(argv))
    path = args.pop("config")
    config, problems = parse(config_class, (read_yaml(path) if path else {}) | args)
    if config is None:
        raise ConfigError(problems)
    return config


def parser_of(config_class: type[BaseModel], description: str) -> argparse.ArgumentParser:
    """`--config` and a flag for every field; a field's `json_schema_extra={"flags": [...]}` names more spellings."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the options below; flags win over it")
    for name, field in config_class.model_fields.items():
        add_flag(parser, name, field)
    return parser


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a flat YAML file."""
    if not path.is_file():
        raise ValueError(f"There is no config file {path}. Those of this project are in configs/.")
    return yaml_options(path.read_text(encoding="utf-8"), where=str(path))


def yaml_options(text: str, where: str) -> dict[str, Any]:
    """The options that YAML text holds; `where` it stands is for messages."""
    from omegaconf import OmegaConf

    try:
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except Exception as error:  # what the YAML reader below omegaconf raises has no name of its own here
        raise ValueError(f"{where} is no YAML of options: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where} holds a list; expected lines of the form `option: value`.")
    return {str(key): value for key, value in data.items()}


def add_flag(parser: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    kinds = _kinds(field.annotation)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    more = extra.get("flags", [])
    spellings = ["--" + name.replace("_", "-"), *(str(flag) for flag in (more if isinstance(more, list) else []))]
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    settings: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": f"{field.description + '; ' if field.description else ''}{default}".replace("%", "%%"),
    }
    if bool in kinds:
        parser.add_argument(*spellings, action=argparse.BooleanOptionalAction, **settings)
    elif list in kinds or tuple in kinds:
        parser.add_argument(*spellings, nargs="*", metavar="VALUE", **settings)
    else:  # what the text stands for is the config's to decide, with one kind of message for file and flag
        parser.add_argument(*spellings, type=_text_or_none, metavar="VALUE", **settings)


def _kinds(annotation: Any) -> set[Any]:
    """The classes that a value may have: int | None -> {int, NoneType}."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {get_origin(annotation) or annotation}


def _text_or_none(text: str) -> str | None:
    return None if text.lower() in NOTHING else text


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(str(item) for item in value) or "nothing" if isinstance(value, list | tuple) else str(value)
