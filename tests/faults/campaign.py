"""Tries what a long life does to the programs: kills, signals, damaged files, malformed input, full disks.

    python -m tests.faults.campaign                        everything, its table on stdout, exit code 1 on any failure
    python -m tests.faults.campaign --place DIR kill/      cases whose names begin so; DIR keeps inputs and results
    python -m tests.faults.campaign --place DIR --resume   what DIR does not know to hold yet
    python -m tests.faults.campaign --sample 2             the first two of each kind and subject

Every program is a fork of this process, which has imported everything; the places of the faults follow from the seed.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.recorded.world import DROPPED, SETTINGS

for _name in DROPPED:
    os.environ.pop(_name, None)
os.environ.update(SETTINGS)  # before torch is imported

from tests.faults import damage, data_inputs, disks, inputs, kills, requests  # noqa: E402
from tests.faults.programs import Programs, import_everything  # noqa: E402
from tests.faults.verdicts import PROBLEMS, Case, Problem  # noqa: E402
from tests.recorded.read import digest  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SETS = (kills, damage, inputs, data_inputs, requests, disks)


def all_cases() -> list[Case]:
    found = [case for part in SETS for case in part.cases()]
    twice = [name for name, count in Counter(case.name for case in found).items() if count > 1]
    assert not twice, f"two cases are called {twice}"
    return found


def chosen(cases: list[Case], names: list[str], sample: int | None) -> list[Case]:
    picked = [case for case in cases if not names or case.name.startswith(tuple(names))]
    if not picked:
        raise SystemExit(f"error: no case begins with {', '.join(names)}")
    if sample is None:
        return picked
    seen: Counter[str] = Counter()
    return [case for case in picked if not _count(seen, case.name.rsplit("/", 1)[0]) > sample]


def _count(seen: Counter[str], name: str) -> int:
    seen[name] += 1
    return seen[name]


def run_case(world: Programs, case: Case, seed: int) -> dict[str, Any]:
    folder = world.place / "cases" / digest(case.name)  # not its name: what is damaged would be named in every path
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    try:
        problems, where = case.run(world, folder, random.Random(f"{seed} {case.name}"))
    except Exception as error:  # noqa: BLE001 - a fault of the campaign itself fails this case and no other
        traceback.print_exc()
        problems, where = [Problem("campaign", f"{type(error).__name__}: {error}")], ""
    if not problems:
        shutil.rmtree(folder, ignore_errors=True)
    found = [[problem.kind, problem.seen] for problem in problems]
    seconds = round(time.monotonic() - started, 2)
    return {
        "kind": case.kind,
        "name": case.name,
        "where": where,
        "problems": found,
        "seconds": seconds,
        "folder": folder.name,
    }


def run_all(world: Programs, cases: list[Case], seed: int, jobs: int, results: Path) -> None:
    """Worker processes take one case after the other; each appends its results."""
    queue, give = os.pipe()
    os.set_blocking(give, False)
    os.write(give, b"".join(number.to_bytes(4, "big") for number in range(len(cases))))
    os.close(give)
    workers = []
    for _ in range(jobs):
        if (worker := os.fork()) == 0:
            try:
                while taken := os.read(queue, 4):
                    number = int.from_bytes(taken, "big")
                    result = run_case(world, cases[number], seed)
                    with results.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    words = "; ".join(f"{kind}: {seen}" for kind, seen in result["problems"]) or "ok"
                    print(
                        f"{number + 1}/{len(cases)} {result['name']} {result['seconds']:.1f} s {words}", file=sys.stderr
                    )
            finally:
                os._exit(0)
        workers.append(worker)
    for worker in workers:
        os.waitpid(worker, 0)


def read(results: Path) -> dict[str, dict[str, Any]]:
    """The last result of each case."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row a kind of fault, a column a kind of failure, then the failures."""
    kinds = list(dict.fromkeys(result["kind"] for result in results))
    found = {kind: Counter(name for r in results if r["kind"] == kind for name, _ in r["problems"]) for kind in kinds}
    columns = [*PROBLEMS, *sorted({name for counts in found.values() for name in counts} - {*PROBLEMS})]
    rows = [["faults", "cases", "failed", *columns], ["---"] * (3 + len(columns))]
    for kind in kinds:
        own = [result for result in results if result["kind"] == kind]
        failed = sum(bool(result["problems"]) for result in own)
        rows.append([kind, str(len(own)), str(failed), *(str(found[kind][name]) for name in columns)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if means := {result["where"].partition("; ")[2] for result in results if result["kind"] == "full disk"} - {""}:
        lines += ["", f"Full disks: {', '.join(sorted(means))}."]
    failures = [r for r in results if r["problems"]]
    lines += [""] * bool(failures)
    for result in failures:
        words = "; ".join(f"{kind}: {seen}" for kind, seen in result["problems"])
        lines.append(
            f"- `{result['name']}` ({result['where']}): {words}"
            if result["where"]
            else f"- `{result['name']}`: {words}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names (default: all cases)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument(
        "--place", type=Path, help="folder of inputs, results and failed cases (default: a temporary one)"
    )
    parser.add_argument("--resume", action="store_true", help="leave out cases that held in --place")
    parser.add_argument("--sample", type=int, help="so many cases of each subject")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument(
        "--sabotage", action="append", default=[], metavar="MODULE:NAME", help="a function that does nothing"
    )
    args = parser.parse_args()
    cases = chosen(all_cases(), args.names, args.sample)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    place = args.place or Path(tempfile.mkdtemp(prefix="faults-"))
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results.jsonl"
    world = Programs(ROOT, place.resolve(), sabotaged=args.sabotage)
    known = read(results) if args.resume else {}
    left = [case for case in cases if case.name not in known or known[case.name]["problems"]]
    started = time.monotonic()
    if left:
        import_everything()
        try:
            for part in SETS:
                part.prepare(world, [case.name for case in left])
            print(f"inputs made in {time.monotonic() - started:.0f} s; {len(left)} cases", file=sys.stderr)
            run_all(world, left, args.seed, args.jobs, results)
        finally:
            requests.close(world)
    found = read(results)
    listed = [found[case.name] for case in cases if case.name in found]
    missing = [case.name for case in cases if case.name not in found]
    print(table(listed))
    print(
        f"\n{len(listed)} cases in {time.monotonic() - started:.0f} s",
        *(f"; without result: {missing}" if missing else ()),
    )
    if args.place is None:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if missing or any(result["problems"] for result in listed) else 0


if __name__ == "__main__":
    sys.exit(main())
