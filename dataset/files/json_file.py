"""Reads small JSON files whole; what is missing, damaged or of another kind is an error that names the file."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Content = TypeVar("Content")
Model = TypeVar("Model", bound=BaseModel)


def read_json(file: Path, kind: type[Content], remedy: str) -> Content:
    """The list or object in a JSON file; `remedy` says what to do if it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist. {remedy}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply. {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON or is damaged ({error}). {remedy}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a {kind.__name__}. {remedy}")
    return content


def read_model(
    file: Path,
    model: type[Model],
    remedy: str,
    error_class: type[ValueError] = ValueError,
    if_missing: str | None = None,
) -> Model:
    """A JSON file as `model` describes it, with all its problems at once in the error; `if_missing` is the remedy then."""
    if if_missing is not None and not file.is_file():
        raise error_class(f"There is no {file.name} in {file.parent}. {if_missing}")
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'its JSON'}: {e['msg']}" for e in error.errors())
        raise error_class(f"Cannot use {file} ({problems}). {remedy}") from error
