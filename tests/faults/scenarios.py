"""What is disturbed: tiny trainings of every kind and every builder, each with its command and how it is resumed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.plants import places
from tests.faults.programs import Programs
from tests.faults.verdicts import success
from tests.recorded.items import CHAT, PUZZLES, STUDENT, TEXT, TUNING, numbered_sudoku, packed, pets, pets_data, teacher
from tests.recorded.items import places as distill_places
from tests.recorded.items import tokenizer as bytes_tokenizer
from tests.recorded.world import arc_puzzles, flags, instruct_records, options, write_lines

Words = list[Any]


@dataclass(frozen=True)
class Scenario:
    """A command that writes below the folder it is started in, and what is said when it is given again."""

    name: str
    door: str
    words: Callable[[Programs, Path], Words]
    again: tuple[str, ...] = ()
    interval: int = 0  # steps between checkpoints, of a training
    prepare: Callable[[Programs, Path], object] = lambda world, place: None
    unlike: str = "$^"  # names of what an interruption may change, such as which answers were recorded

    def place(self, world: Programs, folder: Path) -> Path:
        """A folder with everything that the command reads."""
        place = folder / "work"
        place.mkdir(parents=True)
        self.prepare(world, place)
        return place

    def reference(self, world: Programs) -> Path:
        """The folder of an undisturbed run; its places are in `trace` beside it."""

        def make(folder: Path) -> None:
            world.is_trouble = False
            place = self.place(world, folder)
            ended = world.run(self.door, *self.words(world, place), place=place, trace=folder / "trace")
            (folder / "seconds").write_text(str(ended.seconds))
            world.is_trouble = True
            if problems := success(ended):
                raise RuntimeError(f"{self.name} does not even run: {problems[0].seen}")

        return world.made(f"references/{self.name}", make) / "work"

    def places(self, world: Programs) -> list[tuple[str, int]]:
        return places(self.reference(world).with_name("trace"))

    def seconds(self, world: Programs) -> float:
        return float((self.reference(world).with_name("seconds")).read_text())


def copy_puzzles(world: Programs, place: Path) -> None:
    shutil.copytree(numbered_sudoku(world), place / "data")


def copy_chat(world: Programs, place: Path) -> None:
    shutil.copytree(pets_data(world), place / "data")


def copy_corpus(world: Programs, place: Path) -> None:
    shutil.copytree(packed(world), place / "data")


def write_conversations(world: Programs, place: Path) -> None:
    write_lines(place / "data" / "SlimOrca.jsonl", instruct_records())


def text_tokenizer(world: Programs) -> Path:
    """Of the instruction corpus."""

    def make(folder: Path) -> None:
        folder.mkdir()
        words = {"dataset.data_dir": str(folder / "data"), "checkpoint_path": str(folder / "run"), "max_steps": 1}
        world.call("instruct", *options(TEXT, words))

    return world.made("tokenizers/instruct", make) / "run" / "latest" / "tokenizer.model"


def puzzle_words(world: Programs, place: Path) -> Words:
    given = {"data_paths": [str(place / "data")], "checkpoint_path": str(place / "run"), "ema": True, "ema_rate": 0.9}
    given |= {"epochs": 6, "eval_interval": 2, "checkpoint_interval": 2, "keep_last": 2, "puzzle_emb_lr": 1e-2}
    given |= {"arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 2, "arch.halt_exploration_prob": 0.5}
    return options(PUZZLES, given)


def chat_words(world: Programs, place: Path) -> Words:
    given = {"data_paths": [str(place / "data")], "checkpoint_path": str(place / "run"), "ema": True, "ema_rate": 0.9}
    given |= {"epochs": 2, "eval_interval": 1, "checkpoint_interval": 3, "keep_last": 3}
    given |= {"gradient_accumulation_steps": 2}
    return ["--config-name", "cfg_chat", *options(CHAT, given)]


def text_words(world: Programs, place: Path) -> Words:
    given = {"dataset.source": "local", "dataset.data_dir": str(place / "data"), "arch.recursion": "carry", "epochs": 2}
    given |= {"checkpoint_interval": 4, "checkpoint_path": str(place / "run"), "eval_interval": 1}
    return options(TEXT, given | {"dataset.tokenizer_path": str(text_tokenizer(world))})


def distill_words(world: Programs, place: Path) -> Words:
    given = distill_places(world) | {"output_dir": place / "run", "cache_logits": True, "cache_dir": place / "cache"}
    given |= {"train_data_path": place / "data", "val_data_path": place / "data"}
    given |= {"max_steps": 12, "eval_interval": 4, "save_interval": 3}
    return flags(STUDENT, given)


def tuning_words(world: Programs, place: Path) -> Words:
    given = {"teacher_model": teacher(world), "tokenizer": bytes_tokenizer(world), "data_path": place / "data"}
    return flags(TUNING, given, {"output_dir": place / "run", "save_interval": 2, "lora_rank": 4, "lora_alpha": 8})


PUZZLE_RUN = Scenario("puzzles", "pretrain", puzzle_words, ("resume=true",), 2, copy_puzzles)
CHAT_RUN = Scenario("chat", "pretrain", chat_words, ("resume=true",), 3, copy_chat)
TEXT_RUN = Scenario("text", "instruct", text_words, ("resume=true",), 4, write_conversations)
DISTILL_RUN = Scenario("distill", "distill", distill_words, ("--resume-from", "latest"), 3, copy_corpus, "cache")
TUNING_RUN = Scenario("tune", "tune", tuning_words, ("--resume-from", "latest"), 2, copy_corpus)
TRAININGS = (PUZZLE_RUN, CHAT_RUN, TEXT_RUN, DISTILL_RUN, TUNING_RUN)


def sudoku_words(world: Programs, place: Path) -> Words:
    sizes = ["--generate", "6x6", "--count", 40, "--test-count", 10, "--num-aug", 2]
    return [*sizes, "--seed", 0, "--num-workers", 1, "--output-dir", place / "out"]


def maze_words(world: Programs, place: Path) -> Words:
    sizes = ["--generate", 7, "--count", 40, "--test-count", 10, "--aug"]
    return [*sizes, "--seed", 0, "--num-workers", 1, "--output-dir", place / "out"]


def write_arc(world: Programs, place: Path) -> None:
    challenges, solutions = arc_puzzles()
    for subset, ending in (("training", ""), ("evaluation", "e")):
        for kind, content in (("challenges", challenges), ("solutions", solutions)):
            named = {f"{name}{ending}": value for name, value in content.items()}
            (place / f"x_{subset}_{kind}.json").write_text(json.dumps(named))


def arc_words(world: Programs, place: Path) -> Words:
    return ["--input-file-prefix", place / "x", "--output-dir", place / "out", "--num-aug", 20, "--seed", 3]


def copy_pets(world: Programs, place: Path) -> None:
    shutil.copy(pets(world), place / "pets.json")


def chat_build_words(world: Programs, place: Path) -> Words:
    words = ["--tokenizer", "train:320", "--max-length", 96, "--train-split", 0.8, "--num-workers", 1]
    return ["--input-file", place / "pets.json", "--output-dir", place / "out", *words]


def write_documents(world: Programs, place: Path) -> None:
    packed(world)
    shutil.copytree(world.place / "data" / "documents", place / "raw")


def preprocess_words(world: Programs, place: Path) -> Words:
    words = ["--input", place / "raw", "--output", place / "out", "--tokenizer", bytes_tokenizer(world), "--recursive"]
    return [*words, "--max-seq-length", 64, "--val-fraction", 0.2, "--num-workers", 1]


def cache_words(world: Programs, place: Path) -> Words:
    common = ["--data-path", packed(world), "--teacher-model", teacher(world), "--batch-size", 3, "--device", "cpu"]
    return [*common, "--topk", 16, "--shard-size", 16, "--dtype", "float32", "--output-dir", place / "out"]


SUDOKU = Scenario("sudoku", "build_sudoku", sudoku_words)
MAZE = Scenario("maze", "build_maze", maze_words)
ARC = Scenario("arc", "build_arc", arc_words, prepare=write_arc)
CHAT_DATA = Scenario("conversations", "build_chat", chat_build_words, prepare=copy_pets)
PREPROCESS = Scenario("preprocess", "preprocess", preprocess_words, ("--skip-existing",), prepare=write_documents)
CACHE = Scenario("cache", "cache", cache_words)
BUILDERS = (SUDOKU, MAZE, ARC, CHAT_DATA, PREPROCESS, CACHE)
