"""The committed table of waits and launches, in `waits.json`: what a step or a token may take at most."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "waits.json"
MORE_LAUNCHES = 1.03  # that are let pass


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Waits by line and launches, of one step or token."""
    if "problem" in result:
        raise ValueError(result["problem"])
    times = result["times"]
    waits = {line: round(number / times, 2) for line, number in sorted(result["waits"].items())}
    return {"waits": waits, "launches": round(result["launches"] / times)}


def write_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Take over what was measured; other entries stay."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table |= {name: measured(result) for name, result in results.items() if name.startswith("measured: ")}
    TABLE.write_text(json.dumps(table, indent=2) + "\n")


def too_many(name: str, result: Mapping[str, Any]) -> list[str]:
    """What takes more than the table says, with the line of each wait."""
    allowed, found = json.loads(TABLE.read_text())[name], measured(result)
    new = [
        f"line {result['lines'][line]} of {line}: {number:g} times, {allowed['waits'].get(line, 0):g} in the table"
        for line, number in found["waits"].items()
        if number > allowed["waits"].get(line, 0)
    ]
    if sum(found["waits"].values()) <= sum(allowed["waits"].values()):
        new = []  # the same wait, on a line that was rewritten
    if found["launches"] > MORE_LAUNCHES * allowed["launches"]:
        new.append(f"launches: {found['launches']}, {allowed['launches']} in the table")
    return new
