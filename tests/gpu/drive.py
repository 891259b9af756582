"""Runs the cases on the CPU and on pretended or real devices, in this process, and prints one JSON object a case and device.

python -m tests.gpu.drive cuda --only measured
python -m tests.gpu.drive cuda --only measured --accept
python -m tests.gpu.drive cuda --real --compile --only decoding
"""

import argparse
import contextlib
import io
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

REAL = "--real"
if REAL not in sys.argv:
    # Before anything of ours is imported. Composite operations would arrive whole in inference mode, and the weights of
    # a module that moves to another kind of tensor are swapped, not written to.
    torch.inference_mode = torch.no_grad
    torch.__future__.set_swap_module_params_on_conversion(True)

from engine.runtime.devices import Runtime, leave_compiler_out  # noqa: E402
from engine.train import speed  # noqa: E402
from tests.gpu.cases import CASES, Case  # noqa: E402
from tests.gpu.compare import on_host, worst_difference  # noqa: E402
from tests.gpu.place import Place  # noqa: E402
from tests.gpu.plants import PLANTS  # noqa: E402
from tests.gpu.pretended import Kind, Pretended  # noqa: E402
from tests.gpu.table import write_table  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "kinds", nargs="+", choices=["cuda", "mps", "cpu"], help="what is measured and planted: the first"
    )
    parser.add_argument(REAL, action="store_true", help="the device itself, not a pretended one; nothing is counted")
    parser.add_argument("--compile", action="store_true", help="with --real: compiled there, never on the CPU")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--skip", help="no cases whose name has this")
    parser.add_argument("--accept", action="store_true", help="write what was measured into the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.compile:
        leave_compiler_out()
    out, found = sys.stdout, {}
    with contextlib.redirect_stdout(io.StringIO()):  # what the engine prints is no result
        chosen = {
            name: case
            for name, case in CASES.items()
            if options.only in name and not (options.skip and options.skip in name)
        }
        make = Real if options.real else Pretended
        for name, case in chosen.items():
            kinds = options.kinds[:1] if name.startswith("measured: ") else options.kinds
            for kind, result in outcomes(case, [make(kind) for kind in kinds], use_compile=options.compile):
                found |= {name: result} if kind == options.kinds[0] else {}
                print(json.dumps({"case": name, "kind": kind} | result), file=out, flush=True)
        for name, plant in {} if options.only or options.real else PLANTS.items():
            result = refusal(plant, options.kinds[0])
            print(json.dumps({"case": f"planted: {name}", "kind": options.kinds[0]} | result), file=out, flush=True)
    if options.accept:
        write_table(found)


class Real:
    """A device of this machine."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind, 0)
        self.waited, self.launched, self.line_numbers = {}, {}, {}
        self.entered = self.counting = contextlib.nullcontext


def outcomes(
    case: Case, devices: Sequence[Pretended | Real], use_compile: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each device how far its numbers are from the CPU's, and what it waited for and launched."""
    is_compared = case.tolerance < math.inf
    try:
        with prepared() as folder:
            expected = (
                case.run(Place(Runtime(torch.device("cpu"), 0, 1, False), folder / "cpu")) if is_compared else None
            )
            expected = on_host(expected)
    except Exception as problem:  # noqa: BLE001 - told to whoever reads the results
        yield from ((device.device.type, told(problem)) for device in devices)
        return
    for device in devices:
        started = time.perf_counter()
        try:
            with prepared() as folder, device.entered():
                place = Place(Runtime(device.device, 0, 1, use_compile), folder / "device", device.counting)
                found = on_host(case.run(place))
            worst, where = worst_difference(found, expected) if is_compared else (0.0, "")
        except Exception as problem:  # noqa: BLE001 - told to whoever reads the results
            yield device.device.type, told(problem)
            continue
        yield (
            device.device.type,
            {
                **{"worst": worst, "where": where, "tolerance": case.tolerance, "times": place.facts.get("times", 0)},
                **{
                    "waits": dict(device.waited),
                    "launches": sum(device.launched.values()),
                    "lines": device.line_numbers,
                },
                "seconds": round(time.perf_counter() - started, 2),
            },
        )


def told(problem: Exception) -> dict[str, str]:
    return {"problem": "".join(traceback.format_exception(problem))}


def refusal(plant: Any, kind: Kind) -> dict[str, Any]:
    """What is said of a planted mistake."""
    device = Pretended(kind)
    try:
        with prepared() as folder, device.entered():
            place = Place(Runtime(device.device, 0, 1, False), folder, device.counting)
            with plant(place) as run:
                run(place)
    except Exception as problem:  # noqa: BLE001 - the one that is expected, or another one
        return {"problem": f"{type(problem).__name__}: {problem}"}
    return {"problem": "nothing was refused"}


@contextlib.contextmanager
def prepared() -> Any:
    """A directory, the same random numbers each time, and no measurement of matrix products."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch.dict(speed.PRODUCT_SIZE, cuda=8, mps=8))
        torch.manual_seed(0)
        yield Path(stack.enter_context(tempfile.TemporaryDirectory()))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch's own clean-up of a device that is not there may fail
