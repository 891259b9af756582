"""All that is to be known of a GPU, in parts of one process each: tests, speed and memory of training and decoding, a profile.

What has been measured is kept in one file, so that a call that ran out of time goes on with the next one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dataset.files.disk import write_file
from dataset.files.json_file import read_json
from engine.runtime.code import ROOT, code_version
from engine.runtime.devices import choose_device
from lab.bench.rows import markdown_rows

RESULTS = "gpu.json"
TRACE = "trace.json.gz"
SHORTEST = 30.0  # seconds; with fewer left no part is begun


class Sizes(NamedTuple):
    """How large everything is."""

    text: str  # arch, rows and vocabulary
    passes: tuple[int, ...]  # positions of a pass
    puzzles: dict[str, str]
    depths: tuple[int, ...]
    batches: str
    generate: str
    distill: str


FULL = Sizes(
    text="arch=trm_text --positions 512 --rows 48 --vocab-size 32000 --depth 4",
    passes=(24576, 12288, 3072),
    puzzles={
        "attention_768x97": "arch=trm --positions 97 --rows 768 --vocab-size 12",
        "mlp_768x81": "arch=trm arch.mlp_t=true arch.pos_encodings=none arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=0 "
        "--positions 81 --rows 768 --vocab-size 11",
    },
    depths=(4, 16),
    batches="1 8 64",
    generate="arch=trm_text --prompt 256 --new-tokens 64 --vocab-size 32000",
    distill="--hidden-size 1024 --layers 12 --vocab-size 32000 --rows 8 --positions 1024 --topk 64",
)
NARROW = "arch.hidden_size=32 arch.num_heads=2 arch.H_cycles=1 arch.L_cycles=1"
SMALL = Sizes(
    text=f"arch=trm_text {NARROW} --positions 32 --rows 4 --vocab-size 300 --depth 1",
    passes=(64,),
    puzzles={"attention": f"arch=trm {NARROW} arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=1 --positions 9 --rows 4"},
    depths=(1,),
    batches="1",
    generate=f"arch=trm_text {NARROW} --prompt 4 --new-tokens 4 --vocab-size 300 dataset.seq_len=32",
    distill="--hidden-size 64 --layers 1 --vocab-size 300 --rows 2 --positions 32 --topk 8",
)


def parts(sizes: Sizes, device: str, folder: Path) -> dict[str, list[str]]:
    """What is run, by name: the words behind `python`; those that say the most come first."""
    bench, on = ["scripts/bench.py"], f"device={device}"
    ways = (
        [("compiled", "compile=true"), ("eager", "compile=false")] if device != "cpu" else [("eager", "compile=false")]
    )
    found = {"tests": ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]}
    for way, option in ways:
        for size in sizes.passes:
            words = [*sizes.text.split(), "--steps", "3", f"dataset.tokens_per_pass={size}", on, option]
            found[f"text_{size}_{way}"] = [*bench, "train", *words]
    words = [*sizes.text.split(), "--steps", "3", f"dataset.tokens_per_pass={sizes.passes[0]}", on, ways[0][1]]
    found[f"text_{sizes.passes[0]}_{ways[0][0]}_sdpa"] = [*bench, "train", *words, "attention=sdpa"]
    for way, option in ways:
        for name, shape in sizes.puzzles.items():
            found[f"puzzles_{name}_{way}"] = [*bench, "train", *shape.split(), on, option]
    for depth in sizes.depths:
        for way, option in ways:
            words = [*sizes.generate.split(), on, option, "--depth", str(depth), "--batch", *sizes.batches.split()]
            found[f"decoding_{depth}_{way}"] = [*bench, "generate", *words]
    found["distillation"] = [*bench, "distill", *sizes.distill.split(), "--device", device]
    trace = ["--profile", str(folder / TRACE), f"dataset.tokens_per_pass={sizes.passes[0]}", on, ways[0][1]]
    found["profile"] = [*bench, "train", *sizes.text.split(), "--steps", "1", *trace]
    return found


def bench_gpu(output: str, seconds: float, device: str, small: bool, only: Sequence[str]) -> dict[str, Any]:
    """Run what is missing in the results, for so many seconds at most; prints the rows of a log, returns the results."""
    chosen = choose_device(device)
    if chosen.type == "cpu" and not small:
        raise ValueError("There is no GPU here. --small tries the command itself, at toy sizes, on any device.")
    folder = Path(output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = parts(SMALL if small else FULL, chosen.type, folder)
    if unknown := sorted(set(only) - wanted.keys()):
        raise ValueError(f"--only {' '.join(unknown)}: no such part; there are: {', '.join(wanted)}.")
    results = results_of(folder, about(chosen, small))
    parts_done = results["parts"]
    missing = [name for name in only or wanted if "error" in parts_done.get(name, {"error": "not run yet"})]
    missing.sort(key=lambda name: name in parts_done)  # what failed before is tried again, last
    ends = time.monotonic() + seconds
    for number, name in enumerate(missing):
        left = ends - time.monotonic()
        if left < SHORTEST and number:
            break
        print(f"{name}: {number + 1} of {len(missing)}, {left:.0f} s left", file=sys.stderr)
        found = measured(wanted[name], left, had_all_the_time=number == 0)
        if found is None:
            break
        parts_done[name] = {"command": " ".join(["python", *wanted[name]]), **found}
        write_file(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    if rest := [name for name in missing if name not in parts_done]:
        print(f"time is up before: {', '.join(rest)}. The same command goes on there.", file=sys.stderr)
    print("\n".join(markdown_rows(results)), file=sys.stderr)
    return results


def about(device: torch.device, small: bool) -> dict[str, Any]:
    """What the numbers hold for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "small": small} | code_version()


def results_of(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Those in the folder, if they are of the same device and code; none yet in an empty one."""
    file = folder / RESULTS
    if not file.exists():
        return {**facts, "parts": {}}
    found = read_json(file, dict, "Give another --output.")
    differing = {name: found.get(name) for name, value in facts.items() if found.get(name) != value}
    if differing or not isinstance(found.get("parts"), dict):
        raise ValueError(f"{file} holds results of {differing}, this is {facts}. Give another --output.")
    return found


def measured(words: Sequence[str], seconds: float, *, had_all_the_time: bool) -> dict[str, Any] | None:
    """What a part says, with the seconds it took; None if its time ran out, unless it had all there was."""
    started = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"} if had_all_the_time else None
    spent = {"seconds": round(time.monotonic() - started, 1)}
    last = done.stdout.strip().rpartition("\n")[2]
    if words[0] == "-m":
        return spent | {"tests": last} | ({} if done.returncode == 0 else {"error": f"exit code {done.returncode}"})
    if done.returncode:
        return spent | {"error": f"exit code {done.returncode}; its own message says why"}
    return spent | {"result": json.loads(last)}
