"""A command line made from a pydantic model: a flag for every option, and YAML files that hold the same options.

A flag counts only if it is given; then it overrides the file, which overrides the model's defaults.
"""

import argparse
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.config.parse import ConfigError, nearest, parse

Config = TypeVar("Config", bound=BaseModel)
NOTHING = ("null", "none")  # how a flag says that there is no value
WRONG_OPTIONS = 2  # exit code
ALIAS = re.compile(
    r"(?<![^\s,\[{:?-])\*(?=\S)"
)  # of YAML: it stands for a value that is written elsewhere, again and again
MAX_ALIASES = 10


def also(*names: str, **switches: Any) -> dict[str, Any]:
    """For a field's `json_schema_extra`: other names of its option, and switches, each with the value it stands for."""
    return {"also": dict.fromkeys(names) | switches}


class FlagParser(argparse.ArgumentParser, Generic[Config]):
    """`--config` and a flag for every option of a config class.

    The class may name headings of the help in `headings`, each by the option that it stands above.
    """

    def __init__(self, config_class: type[Config], description: str) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.config_class = config_class
        self.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the options below; flags win")
        headings = getattr(config_class, "headings", {})
        group: argparse._ActionsContainer = self
        for name, field in config_class.model_fields.items():
            if name in headings:
                group = self.add_argument_group(headings[name])
            add_flags(group, name, field)

    def read(self, argv: Sequence[str] | None = None) -> tuple[Config, argparse.Namespace]:
        """The checked config, and the flags that are not options of it; exits with every problem in words."""
        args = self.parse_args(argv)
        flags = {key: value for key, value in vars(args).items() if key in self.config_class.model_fields}
        try:
            config = merged(self.config_class, read_yaml(args.config) if args.config else {}, flags)
        except (ValueError, OSError) as error:
            self.exit(WRONG_OPTIONS, f"error: {error}\n")
        return config, args

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            known = list(self._option_string_actions)
            flags = [f"unknown flag {name}{nearest(name, known)}" for name in names]
            self.error("; ".join(flags) or f"{unknown[0]!r} belongs to no flag")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_OPTIONS, f"error: {message}\n{self.prog} --help lists all flags.\n")


def merged(config_class: type[Config], *sources: dict[str, Any]) -> Config:
    """The config of several sources, of which the later ones win; otherwise ONE error with every problem of all."""
    options: dict[str, Any] = {}
    problems: list[str] = []
    for source in sources:
        plain, wrong = under_own_names(config_class, source)
        problems += wrong
        for name, value in plain.items():
            former = options.get(name)
            both = isinstance(former, dict) and isinstance(value, dict)
            options[name] = former | value if both else value
    config, wrong = parse(config_class, options)
    if problems or wrong or config is None:
        raise ConfigError([*problems, *wrong])
    return config


def under_own_names(config_class: type[BaseModel], source: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options without the other names that `also` gives them, and which of them are given twice."""
    options, problems = dict(source), []
    for name, field in config_class.model_fields.items():
        for other, meaning in _also(field).items():
            if other not in options:
                continue
            value = options.pop(other)
            if meaning is not None:
                if value in (None, False):
                    continue
                if value is not True:
                    problems.append(f"{other}: expected true or false, found {value!r}")
                value = meaning
            if name in options and options[name] != value:
                problems.append(f"{other} and {name}={options[name]} contradict each other. Give one of them")
            options[name] = value
    return options, problems


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a flat YAML file."""
    if not path.is_file():
        raise ValueError(f"There is no config file {path}. Those of this project are in configs/.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML of options: {error}") from error
    return yaml_options(text, where=str(path))


def yaml_options(text: str, where: str) -> dict[str, Any]:
    """The options that YAML text holds; `where` it stands is for messages."""
    try:
        data = _parsed(text, resolve=True)
    except Exception as error:  # the YAML library below omegaconf raises classes that this project does not import
        raise ValueError(f"{where} is not YAML of options: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where} holds a list; expected lines of the form `option: value`.")
    return {str(key): value for key, value in data.items()}


def plain_yaml_options(text: str, where: str, remedy: str) -> dict[str, Any]:
    """The options that YAML text from somebody else holds: small when written out, and values only, so that nothing of
    this machine, such as an environment variable, gets into them."""
    try:
        data = _parsed(text, resolve=False)
        if not isinstance(data, dict):
            raise ValueError("it holds a list; expected lines of the form `option: value`")
        if (key := _interpolated(data)) is not None:
            raise ValueError(f"{key} refers to another value; expected the value itself")
    except Exception as error:  # as above
        raise ValueError(f"{where} cannot be used: {' '.join(str(error).split())[:300]}. {remedy}") from error
    return {str(key): value for key, value in data.items()}


def _parsed(text: str, resolve: bool) -> Any:
    from omegaconf import OmegaConf

    if (aliases := len(ALIAS.findall(text))) > MAX_ALIASES:
        raise ValueError(f"it has {aliases} aliases (*name), expected at most {MAX_ALIASES}")
    return OmegaConf.to_container(OmegaConf.create(text), resolve=resolve)


def _interpolated(value: Any, key: str = "") -> str | None:
    """The key of the first value with an interpolation in it."""
    if isinstance(value, str):
        return key if "${" in value else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_interpolated(item, f"{key}.{name}".lstrip(".")) for name, item in items)
    return next((each for each in found if each is not None), None)


def add_flags(group: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    """The flags of one option, with its description and default; an option with options of its own has switches only."""
    kinds = _kinds(field.annotation)
    others = _also(field)
    names = [name, *(other for other, meaning in others.items() if meaning is None)]
    spellings = ["--" + text.replace("_", "-") for text in names]
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    about = f"{field.description}; {default}" if field.description else default
    settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": about.replace("%", "%%")}
    literals = [part for kind in kinds for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    choices = [str(value) for literal in literals for value in get_args(literal)]
    metavar = f"{{{','.join(choices)}}}" if choices else "VALUE"
    if bool in kinds:
        group.add_argument(*spellings, action=argparse.BooleanOptionalAction, **settings)
    elif {list, tuple} & {get_origin(kind) for kind in kinds}:
        group.add_argument(*spellings, nargs="*", action="extend", metavar=metavar, **settings)
    elif not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        # What the text stands for is the model's to decide, with one kind of message for file and flag.
        group.add_argument(*spellings, type=_text_or_none, metavar=metavar, **settings)
    for switch, meaning in others.items():
        if meaning is not None:
            settings["help"] = f"short for {name}: {meaning}"
            group.add_argument("--" + switch.replace("_", "-"), action="store_const", const=meaning, **settings)


def _also(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    found = extra.get("also") if isinstance(extra, dict) else None
    return found if isinstance(found, dict) else {}


def _kinds(annotation: Any) -> list[Any]:
    """What a value may be: int | None -> [int, NoneType]."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _text_or_none(text: str) -> str | None:
    return None if text.lower() in NOTHING else text


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(str(item) for item in value) or "nothing" if isinstance(value, list | tuple) else str(value)
