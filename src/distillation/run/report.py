"""The result of a program of this wing: one JSON object on standard output."""

import json
import math
from typing import Any


def show(result: dict[str, Any]) -> None:
    print(json.dumps(finite(result), allow_nan=False))


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
