"""Records what a rebuilt tree must still do, number by number, and checks it.

    python tests/recorded/net.py record                      everything, into numbers.json beside this file
    python tests/recorded/net.py record text/carry help/     one item, and all items whose names begin so
    python tests/recorded/net.py check                       everything against numbers.json; exit code 1 if a number differs
    python tests/recorded/net.py check --root ../other       another tree, by the items and numbers of this one
    python tests/recorded/net.py check --plain text/carry    a new interpreter for every program, which is slower
    python tests/recorded/net.py list                        the names

It runs the programs (DOORS in world.py) as processes with tiny seeded settings on one CPU thread, in a temporary folder,
and reads only the files and the output that they leave. Each is a fork of a process that has imported the libraries, not the
tree (warm.py), because most of a tiny run would be imports; it imports nothing of models, engine, dataset and src, so those may
move. Losses are compared bit by bit, arrays and long texts by a hash. What is new (another option, another metric) is no
difference; what was recorded and is gone is one. Bit equality holds on the same kind of machine and versions only:
numbers.json says on which it was recorded, and a check says when this one is another.

A number that changes on purpose stays in numbers.json as it was, and is entered there by hand or by `accept`:

    python tests/recorded/net.py accept text/carry --why "the carry starts anew after an evaluation"

which runs the item and adds, for each number that differs, "accepted": {"text/carry: test/token_loss": {"was": ..., "is": ...,
"why": ...}}. From then on a check wants what `is` says, and prints `changed on purpose: why`.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recorded.items import ITEMS
from tests.recorded.read import Found
from tests.recorded.world import FailedError, World

NUMBERS = Path(__file__).resolve().parent / "numbers.json"
GONE = "(gone)"


def machine() -> dict[str, str]:
    """What bit equality depends on."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "numpy", "transformers", "tokenizers", "sentencepiece", "pyarrow")
    processor = platform.processor() or platform.machine()
    facts = {"processor": processor, "capability": torch.backends.cpu.get_cpu_capability()}
    return facts | {"python": platform.python_version()} | {name: version(name) for name in packages}


def load() -> dict[str, Any]:
    empty: dict[str, Any] = {"machine": {}, "items": {}, "accepted": {}}
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else empty


def save(numbers: dict[str, Any]) -> None:
    """One number a line, so that a change of one is a change of one line."""
    parts = [f'"machine": {json.dumps(numbers["machine"])}']
    items = []
    for name, found in sorted(numbers["items"].items()):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
        items.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    parts.append('"items": {\n' + ",\n".join(items) + "\n}")
    entries = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(numbers["accepted"].items())]
    parts.append('"accepted": {' + ",".join(f"\n{entry}" for entry in entries) + "\n}")
    NUMBERS.write_text("{" + ",\n".join(parts) + "}\n")


def chosen(names: list[str]) -> list[str]:
    """Names of items, or beginnings of them."""
    for name in names:
        if not any(known.startswith(name) for known in ITEMS):
            raise SystemExit(f"error: no item begins with {name!r}. Choose from {', '.join(ITEMS)}")
    return [known for known in ITEMS if not names or any(known.startswith(name) for name in names)]


def measure(world: World, name: str) -> tuple[Found | None, str]:
    """What the tree does now, or why it does nothing."""
    try:
        return json.loads(json.dumps(ITEMS[name](world))), ""
    except (FailedError, OSError, ValueError, KeyError, IndexError) as error:
        return None, f"{type(error).__name__}: {error}"


def distance(was: Any, now: Any) -> str:
    """How far apart numbers are, so that rounding can be told from an error."""
    pairs = list(zip(was, now, strict=False)) if isinstance(was, list) and isinstance(now, list) else [(was, now)]
    for place, (one, other) in enumerate(pairs):
        if one == other:
            continue
        at = f" at {place}" if isinstance(was, list) else ""
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)):
            return f"{at} {one!r} -> {other!r} (relative {abs(other - one) / max(abs(one), 1e-12):.1e})"
        return f"{at} {one!r} -> {other!r}"
    return f" {was!r} -> {now!r}"


def compare(name: str, was: Found, now: Found, accepted: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs from the record, and what differs on purpose."""
    differs, on_purpose = [], []
    for key, value in was.items():
        found, entry = now.get(key, GONE), accepted.get(f"{name}: {key}")
        if entry is not None and json.dumps(found) == json.dumps(entry["is"]):
            on_purpose.append(f"{key} changed on purpose: {entry['why']}")
        elif entry is not None:
            differs.append(f"{key}:{distance(entry['is'], found)}, accepted was {entry['is']!r}")
        elif json.dumps(found) != json.dumps(value):
            differs.append(f"{key}:{distance(value, found)}")
    differs.sort(key=lambda line: "(relative" not in line)  # a number says more than a hash
    return differs, on_purpose


def shorten(text: str, width: int = 260) -> str:
    return text if len(text) <= width else f"{text[:width]}..."


def check(world: World, names: list[str], numbers: dict[str, Any]) -> bool:
    """Prints the table; True if nothing differs."""
    here, there = machine(), numbers["machine"]
    others = [f"{key} {there.get(key)} -> {value}" for key, value in here.items() if there.get(key) != value]
    if others:
        print("this is another machine than the recorded one, so last bits may differ: " + ", ".join(others))
    equal = 0
    for name in names:
        start = time.monotonic()
        if name not in numbers["items"]:
            print(f"{name:32} not recorded yet", flush=True)
            continue
        now, trouble = measure(world, name)
        was = numbers["items"][name]
        differs, on_purpose = ([trouble], []) if now is None else compare(name, was, now, numbers["accepted"])
        equal += not differs
        verdict = f"DIFFERS ({len(differs)} of {len(was)}): {shorten(differs[0])}" if differs else "equal"
        print(f"{name:32} {time.monotonic() - start:5.1f} s  {verdict}", flush=True)
        for line in on_purpose:
            print(f"{'':32}          {shorten(line)}")
        new = sorted(now.keys() - was.keys()) if now else []
        if new:
            print(f"{'':32}          new since: {shorten(', '.join(new))}")
    print(f"{equal} of {len(names)} equal")
    return equal == len(names)


def record(world: World, names: list[str], numbers: dict[str, Any]) -> bool:
    numbers["machine"] = machine()
    well = True
    for name in names:
        start = time.monotonic()
        now, trouble = measure(world, name)
        if now is None:
            well = False
        else:
            numbers["items"][name] = now
            numbers["accepted"] = {
                key: entry for key, entry in numbers["accepted"].items() if not key.startswith(f"{name}: ")
            }
        size = trouble if now is None else f"{len(now)} numbers"
        print(f"{name:32} {time.monotonic() - start:5.1f} s  {size}", flush=True)
    save(numbers)
    return well


def accept(world: World, names: list[str], numbers: dict[str, Any], why: str) -> bool:
    well = True
    for name in names:
        now, trouble = measure(world, name)
        if now is None:
            print(f"{name:32} {trouble}")
            well = False
            continue
        for key, was in numbers["items"][name].items():
            found, old = now.get(key, GONE), numbers["accepted"].get(f"{name}: {key}")
            if old is not None and json.dumps(found) == json.dumps(old["is"]):
                continue  # its reason stands
            if json.dumps(found) != json.dumps(was):
                numbers["accepted"][f"{name}: {key}"] = {"was": was, "is": found, "why": why}
                print(f"{name}: {key}:{shorten(distance(was, found))}")
    save(numbers)
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "check", "accept", "list"])
    parser.add_argument("names", nargs="*", help="items, or beginnings of their names; default: all")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the tree that is run")
    parser.add_argument("--why", help="accept: the reason")
    parser.add_argument("--plain", action="store_true", help="a new interpreter for every program; slower")
    parser.add_argument("--keep", type=Path, help="keep the runs in this new folder, to look at them")
    args = parser.parse_intermixed_args()
    names = chosen(args.names)
    if args.what == "list":
        print("\n".join(names))
        return
    if args.what == "accept" and not (args.why and args.names):
        raise SystemExit("error: accept needs the names of items and --why <reason>")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        if args.keep:
            args.keep.mkdir(parents=True)
        world, numbers = World(args.root.resolve(), (args.keep or Path(place)).resolve(), args.plain), load()
        if args.what == "check":
            well = check(world, names, numbers)
        elif args.what == "record":
            well = record(world, names, numbers)
        else:
            well = accept(world, names, numbers, args.why)
        world.close()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - start:.0f} s, of them {used.ru_utime + used.ru_stime:.0f} s of a core")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
