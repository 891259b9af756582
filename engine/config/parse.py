"""From plain values to a typed config, or to sentences that say what is wrong with them."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """Lists every problem of a config, each with what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problems" if len(self.problems) > 1 else "1 problem"
        super().__init__(f"{count} in the config:\n" + "\n".join(f"  - {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        """So that it comes out of another process as it was: by itself it would be made anew from its message."""
        return ConfigError, (self.problems,)


def parse(config_class: type[Config], data: dict[str, Any], prefix: str = "") -> tuple[Config | None, list[str]]:
    """The typed config, or None and every problem of a single key; which keys do not fit together is seen after that."""
    try:
        return config_class.model_validate(data), []
    except ValidationError as error:
        return None, problems_of(error, config_class, prefix)


def problems_of(error: ValidationError, config_class: type[BaseModel], prefix: str = "") -> list[str]:
    """Pydantic's findings as sentences; an unknown key gets a suggestion."""
    sentences = []
    for found in error.errors(include_url=False):
        path = prefix + ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            sentences.append(
                f"{path}: unknown key{nearest(str(found['loc'][-1]), keys_at(config_class, found['loc']))}"
            )
        elif found["type"] == "missing":
            sentences.append(f"{path}: is required, but was not given")
        elif found["type"] == "value_error":
            about = f"{path}: " if found["loc"] else ""
            sentences += [about + sentence for sentence in str(found["ctx"]["error"]).splitlines()]
        else:
            message = found["msg"][0].lower() + found["msg"][1:]
            sentences.append(f"{path}: {message}, found {found['input']!r}")
    return sentences


def keys_at(config_class: type[BaseModel], path: Iterable[int | str]) -> Iterable[str]:
    """The keys beside the one at this path, of the innermost config that is known there."""
    for part in path:
        field = config_class.model_fields.get(str(part))
        inside = [field.annotation, *get_args(field.annotation)] if field else []
        classes = [found for found in inside if isinstance(found, type) and issubclass(found, BaseModel)]
        config_class = classes[0] if classes else config_class
    return config_class.model_fields


def nearest(key: str, known: Iterable[str]) -> str:
    """', did you mean x?' if there is something like `key`."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""
