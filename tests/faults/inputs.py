"""Malformed options of every entry point: each is refused by name, or does what it says, and soon."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.programs import Ended, Programs
from tests.faults.scenarios import (
    ARC,
    CACHE,
    CHAT_DATA,
    CHAT_RUN,
    DISTILL_RUN,
    MAZE,
    PREPROCESS,
    PUZZLE_RUN,
    SUDOKU,
    TEXT_RUN,
    TUNING_RUN,
    Scenario,
)
from tests.faults.verdicts import Case, Problems, crashes, refusal

SOON = 60.0  # seconds on a machine with others on it
ANYTHING = (
    "",
    "abc",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "2.5",
    "1e400",
    "null",
    "[]",
    "{}",
    "../x",
    "[1,{a: b}]",
    "\x1b[31m",
)
HUGE = "99999999999999999999999"
NOT_HUGE = (
    "steps",
    "epochs",
    "cycles",
    "count",
    "num_aug",
    "tokens",
    "batches",
    "sequences",
    "conversations",
    "samples",
)

HYDRA = {
    "all": ["lr", "lr_min_ratio", "lr_warmup_steps", "beta1", "beta2", "weight_decay", "grad_clip", "ema_rate", "seed"],
    "more": [
        "epochs",
        "eval_interval",
        "global_batch_size",
        "gradient_accumulation_steps",
        "log_interval",
        "optimizer",
    ],
    "puzzles": ["puzzle_emb_lr", "eval.noise", "eval.rollouts", "eval.validation_split", "data_paths", "evaluators"],
    "text": ["dataset.seq_len", "dataset.test_ratio", "dataset.subset_size", "dataset.source", "dataset.packing"],
    "chat": ["seq_len", "packing", "tokens_per_pass", "data_paths", "best_metric", "dataset_type"],
    "arch": [
        "hidden_size",
        "num_heads",
        "expansion",
        "L_layers",
        "halt_max_steps",
        "rope_theta",
        "forward_dtype",
        "norm",
    ],
    "arch more": [
        "pos_encodings",
        "halt_exploration_prob",
        "puzzle_emb_ndim",
        "puzzle_emb_len",
        "name",
        "depth_curriculum",
    ],
    "run": [
        "checkpoint_interval",
        "keep_last",
        "load_checkpoint",
        "tracker",
        "max_bad_steps",
        "dataloader_workers",
        "resume",
    ],
}
REPLY_FLAGS = [
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "seed",
    "depth",
    "repetition-penalty",
    "exit",
    "exit-threshold",
]


def hydra_words(scenario: Scenario, option: str, value: str, world: Programs, place: Path) -> list[Any]:
    given = [word for word in scenario.words(world, place) if not str(word).startswith((f"{option}=", "max_steps="))]
    return [*given, *([] if option == "max_steps" else ["max_steps=2"]), f"{option}={value}"]


def flag_words(scenario: Scenario, option: str, value: str, world: Programs, place: Path) -> list[Any]:
    given = [str(word) for word in scenario.words(world, place)]
    if scenario in (DISTILL_RUN, TUNING_RUN) and option != "max-steps":
        given += ["--max-steps", "2"]
    return [*given, f"--{option}={value}"]


def reply_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    run = CHAT_RUN.reference(world) / "run"
    words = ["--checkpoint", run, "--prompt", "Hello", "--max-new-tokens", 4, "--no-stream", "--device", "cpu"]
    return [*words, f"--{option}={value}"]


def answer_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    run = TEXT_RUN.reference(world) / "run" / "latest"
    words = ["--checkpoint", run, "--message", "Hello", "--max-output-tokens", 4, "--no-stream", "--device", "cpu"]
    return [*words, f"--{option}={value}"]


def inference_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    run = TEXT_RUN.reference(world) / "run" / "latest"
    return ["--checkpoint", run, "--output-dir", place / "scores", "--max-batches", 1, f"--{option}={value}"]


def checkpoint_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    run = TEXT_RUN.reference(world) / "run" / "latest"
    return ["--checkpoint", run, f"--{option}={value}"]


def serve_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    checkpoint = [] if option == "checkpoint" else ["--checkpoint", CHAT_RUN.reference(world) / "run"]
    return [*checkpoint, "--port", 0, "--device", "cpu", f"--{option}={value}"]


def picture_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    return [PUZZLE_RUN.reference(world) / "run", f"--{option}={value}"]


def sample_words(option: str, value: str, world: Programs, place: Path) -> list[Any]:
    return [CHAT_RUN.reference(world) / "data", f"--{option}={value}"]


@dataclass(frozen=True)
class Entry:
    """A program, its options, and the command with one of them set."""

    name: str
    door: str
    options: list[str]
    count: int  # how many cases
    words: Callable[[str, str, Programs, Path], list[Any]]
    scenario: Scenario | None = None  # whose inputs it reads in its own folder
    reads: tuple[Scenario, ...] = ()


def hydra_entry(scenario: Scenario, count: int, *parts: str) -> Entry:
    keys = [f"arch.{key}" if part.startswith("arch") else key for part in parts for key in HYDRA[part]]
    return Entry(scenario.name, scenario.door, keys, count, partial(hydra_words, scenario), scenario)


def flag_entry(scenario: Scenario, count: int, *names: str) -> Entry:
    return Entry(scenario.name, scenario.door, list(names), count, partial(flag_words, scenario), scenario)


ENTRIES = (
    hydra_entry(PUZZLE_RUN, 36, "all", "more", "puzzles", "arch", "arch more", "run"),
    hydra_entry(CHAT_RUN, 14, "all", "chat", "arch", "run"),
    hydra_entry(TEXT_RUN, 14, "all", "more", "text", "arch"),
    flag_entry(
        DISTILL_RUN,
        22,
        *("learning-rate", "min-lr", "weight-decay", "warmup-batches", "teacher-topk", "teacher-temperature", "tail"),
        *("max-seq-length", "physical-batch-size", "student", "student-overrides", "divergence", "optimizer-type"),
        *(
            "eval-interval",
            "save-interval",
            "seed",
            "teacher-model",
            "cache-dir",
            "val-data-path",
            "cosine-t0",
            "config",
        ),
    ),
    flag_entry(TUNING_RUN, 8, "lora-rank", "lora-alpha", "lora-dropout", "learning-rate", "seed", "method", "patience"),
    flag_entry(SUDOKU, 6, "generate", "count", "num-aug", "seed", "num-workers", "min-difficulty", "test-count"),
    flag_entry(MAZE, 5, "generate", "count", "min-length", "seed", "num-workers"),
    flag_entry(ARC, 5, "num-aug", "seed", "subsets", "test-set-name", "puzzle-identifiers-start", "missing-solutions"),
    flag_entry(CHAT_DATA, 7, "format", "tokenizer", "max-length", "train-split", "subsample-size", "long", "seed"),
    flag_entry(PREPROCESS, 6, "max-seq-length", "shard-size", "val-fraction", "num-workers", "tokenizer", "config"),
    flag_entry(CACHE, 7, "topk", "batch-size", "shard-size", "temperature", "kind", "dtype", "seed", "teacher-model"),
    Entry("reply", "chat", [*REPLY_FLAGS, "max-new-tokens", "checkpoint"], 12, reply_words, reads=(CHAT_RUN,)),
    Entry("answer", "answer", [*REPLY_FLAGS, "mode", "batch-size", "overrides"], 10, answer_words, reads=(TEXT_RUN,)),
    Entry(
        *("inference", "inference", ["split", "subset-size", "seq-len", "batch-size", "save-outputs"], 8),
        *(inference_words, None, (TEXT_RUN,)),
    ),
    Entry(
        "serve", "serve", ["host", "port", "depth", "answers-at-once", "checkpoint"], 6, serve_words, reads=(CHAT_RUN,)
    ),
    Entry("calibrate", "calibrate", ["max-loss-increase", "conversations"], 4, checkpoint_words, reads=(TEXT_RUN,)),
    Entry("plot", "plot", ["output"], 3, picture_words, reads=(PUZZLE_RUN,)),
    Entry("sample", "show_sample", ["split", "count", "seed"], 4, sample_words, reads=(CHAT_RUN,)),
    Entry("probe", "probe_leaks", ["train-steps"], 3, checkpoint_words, reads=(TEXT_RUN,)),
)


def judged(ended: Ended, option: str, value: str) -> Problems:
    """Taken, or refused under its name or with the value that was given."""
    name = option.rsplit(".", 1)[-1]
    if ended.code == 0:
        return crashes(ended)
    return refusal(ended, name, name.replace("-", "_"), *([value] if len(value) > 1 else []))


def try_option(entry: Entry, option: str, value: str, world: Programs, folder: Path, draw: random.Random) -> Any:
    place = entry.scenario.place(world, folder) if entry.scenario else folder / "work"
    place.mkdir(exist_ok=True)
    words = entry.words(option, value, world, place)
    ended = world.run(entry.door, *words, place=place, limit=8 if entry.door == "serve" else SOON)
    if entry.door == "serve" and ended.out.startswith("http"):  # it took the option and serves until it is ended
        return [], f"{option}={value}"
    return judged(ended, option, value), f"{option}={value!r}"


def drawn(entry: Entry) -> list[tuple[str, str]]:
    """Every option once and then again, each time with another value; the same in every run."""
    draw = random.Random(entry.name)
    taken: list[tuple[str, str]] = []
    left = {
        option: draw.sample(values, len(values))
        for option in entry.options
        for values in [[*ANYTHING, *(() if any(word in option.replace("-", "_") for word in NOT_HUGE) else (HUGE,))]]
    }
    order = draw.sample(entry.options, len(entry.options))
    while len(taken) < entry.count:
        taken += [(option, left[option].pop()) for option in order if left[option]]
    return taken[: entry.count]


def cases() -> list[Case]:
    found = []
    for entry in ENTRIES:
        for number, (option, value) in enumerate(drawn(entry), start=1):
            run = partial(try_option, entry, option, value)
            found.append(Case("input", f"input/{entry.name}/{option}-{number}", run))
    return found


def prepare(world: Programs, names: list[str]) -> None:
    for entry in ENTRIES:
        if any(name.startswith(f"input/{entry.name}/") for name in names):
            for scenario in entry.reads:
                scenario.reference(world)
            if entry.scenario:
                entry.words(entry.options[0], "", world, world.fresh())
                entry.scenario.place(world, world.fresh())
