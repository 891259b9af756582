"""Writes tests/fixtures/written_before: what a tree leaves on disk, which later trees must still load and go on from.

    python tests/recorded/write_fixtures.py

was run on the tree before its rooms were moved; running it again throws that away. The folders hold tiny runs, data sets and a
cache; `goes_on.json` says by which command each goes on, and which losses the tree that wrote it had next.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recorded.items import PUZZLES, SMALL, STUDENT, TEXT, TUNING, Words
from tests.recorded.read import lines_of
from tests.recorded.world import (
    World,
    document_records,
    flags,
    options,
    write_bytes_tokenizer,
    write_lines,
    write_teacher,
)

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tests" / "fixtures" / "written_before"
TINY = {"arch.hidden_size": 8, "arch.tie_embeddings": True}
MORE = 3


def written(world: World, name: str, door: str, words: list[str], stop: list[str], more: list[str]) -> Words:
    """Train as far as `stop` says, then let a copy go on as far as `more` says; how it goes on, and the losses it had."""
    here = PLACE / name
    world.call(door, *words, *stop, cwd=here)
    before = steps(here / "run")
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / name
        shutil.copytree(here, copy, symlinks=True)
        world.call(door, *words, *more, cwd=copy)
        after = steps(copy / "run")
    key = next(key for key in ("train/ce", "train/token_loss", "train/lm_loss", "train/loss") if key in after[0])
    command = [*words, *more]
    losses = [line[key] for line in after if line["step"] > before[-1]["step"]]
    return {"door": door, "command": command, "step": before[-1]["step"], "key": key, "losses": losses}


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(run) if any(key.startswith("train/") for key in line)]


def add_answers(world: World, found: dict[str, Words]) -> None:
    """What the checkpoints say, how the puzzles are solved, and what the tuned model teaches."""
    words = ["--message", "Hello!", "--system-message", "", "--max-output-tokens", 4, "--device", "cpu", "--json"]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(PLACE, copy, symlinks=True)
        for name in ("unrolled", "carried", "chat", "distilled"):
            said = json.loads(world.call("answer", "--checkpoint", "run", *words, "--temperature", 0, cwd=copy / name))
            found[name]["answer"] = {key: said[key] for key in ("tokens", "logprobs")}
        command = [word for word in found["puzzle"]["command"] if not word.startswith(("resume", "max_steps"))]
        out = world.call("pretrain", *command, "eval_only=true", "load_checkpoint=run", cwd=copy / "puzzle")
        found["puzzle"]["evaluated"] = json.loads(out)
        command = found["distilled"]["command"]
        command = command[: command.index("--resume-from")]
        more = [
            "--teacher-mode",
            "direct",
            "--teacher-model",
            copy / "tuned" / "run",
            "--output-dir",
            "a",
            "--max-steps",
            2,
        ]
        world.call("distill", *command, *more, cwd=copy / "distilled")
        found["tuned"]["teaches"] = [line["train/kd"] for line in steps(copy / "distilled" / "a")]


def main() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    found: dict[str, Words] = {}
    with tempfile.TemporaryDirectory() as place:
        world = World(ROOT, Path(place))
        for name in ("puzzle", "unrolled", "carried", "chat", "distilled", "tuned"):
            (PLACE / name).mkdir(parents=True)

        here = PLACE / "puzzle"
        words = ["--generate", "4x4", "--count", "16", "--test-count", "6", "--seed", "0", "--num-workers", "1"]
        world.call("build_sudoku", *words, "--output-dir", "data", cwd=here)
        given = {"data_paths": ["data"], "checkpoint_path": "run", "ema": True}
        command = options(PUZZLES, TINY, given, {"arch.halt_exploration_prob": 0.5, "arch.tie_embeddings": False})
        found["puzzle"] = written(
            world, "puzzle", "pretrain", command, ["max_steps=5"], [f"max_steps={5 + MORE}", "resume=true"]
        )

        for name, more in (("unrolled", {"ema": True}), ("carried", {"arch.recursion": "carry"})):
            here = PLACE / name
            given = {"dataset.data_dir": "data", "checkpoint_path": "run"}
            command = options(TEXT, TINY, {"dataset.sample_size": 100, "dataset.seq_len": 64, "epochs": 4}, given, more)
            found[name] = written(
                world, name, "instruct", command, ["max_steps=5"], [f"max_steps={5 + MORE}", "resume=true"]
            )

        here = PLACE / "chat"
        world.call("conversations", "--count", 40, "--output", world.place / "pets.json")
        words = ["--tokenizer", "train:300", "--max-length", "64", "--train-split", "0.8", "--num-workers", "1"]
        world.call("build_chat", "--input-file", world.place / "pets.json", "--output-dir", "data", *words, cwd=here)
        given = {"data_paths": ["data"], "checkpoint_path": "run", "arch.L_layers": 1}
        command = ["--config-name", "cfg_chat", *options(SMALL, TINY, {"global_batch_size": 4, "epochs": 4}, given)]
        command += ["eval_interval=4"]
        found["chat"] = written(
            world, "chat", "pretrain", command, ["max_steps=5"], [f"max_steps={5 + MORE}", "resume=true"]
        )

        here = PLACE / "distilled"
        write_bytes_tokenizer(here / "tokenizer")
        write_lines(world.place / "raw" / "letters.jsonl", document_records(60))
        words = ["--input", world.place / "raw", "--output", "packed", "--tokenizer", "tokenizer"]
        world.call("preprocess", *words, "--max-seq-length", 64, "--val-fraction", 0.2, "--num-workers", 1, cwd=here)
        write_teacher(world.place / "teacher", hidden_size=16, intermediate_size=32, num_hidden_layers=1)
        words = ["--data-path", "packed", "--teacher-model", world.place / "teacher", "--topk", 8, "--device", "cpu"]
        world.call("cache", *words, "--dtype", "float32", "--output-dir", "cache", cwd=here)
        given = {"train_data_path": "packed", "val_data_path": "packed", "tokenizer_name": "tokenizer"}
        given |= {"teacher_mode": "cached", "cache_dir": "cache", "output_dir": "run", "teacher_topk": 8}
        given |= {"student_overrides": "hidden_size=8 num_heads=2 H_layers=1 expansion=1", "eval_interval": 0}
        command = flags(STUDENT, given)
        resume = ["--max-steps", str(5 + MORE), "--resume-from", "latest"]
        found["distilled"] = written(world, "distilled", "distill", command, ["--max-steps", "5"], resume)

        here = PLACE / "tuned"
        shutil.copytree(world.place / "teacher", here / "teacher")
        for part in ("packed", "tokenizer"):
            shutil.copytree(PLACE / "distilled" / part, here / part)
        given = {"teacher_model": "teacher", "tokenizer": "tokenizer", "data_path": "packed"}
        given |= {"output_dir": "run", "lora_rank": 2, "lora_alpha": 4, "eval_interval": 3}
        resume = ["--max-steps", str(6 + MORE), "--resume-from", "run"]
        found["tuned"] = written(world, "tuned", "tune", flags(TUNING, given), ["--max-steps", "6"], resume)
        add_answers(world, found)
        world.close()
    (PLACE / "goes_on.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
