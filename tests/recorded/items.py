"""What is recorded: one function an item, each a few programs on tiny seeded inputs and what is read of their files."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.recorded.read import (
    Found,
    array,
    arrays,
    config_of,
    digest,
    flat,
    options_of,
    tables,
    tensors,
    training,
)
from tests.recorded.world import (
    DOORS,
    FailedError,
    World,
    arc_puzzles,
    chat_records,
    document_records,
    flags,
    instruct_records,
    options,
    write_bytes_tokenizer,
    write_lines,
    write_llama_tokenizer,
    write_teacher,
)

Item = Callable[[World], Found]
ITEMS: dict[str, Item] = {}
Words = dict[str, Any]


def item(name: str, *given: Any, **named: Any) -> Callable[[Callable[..., Found]], Callable[..., Found]]:
    """Enters a function under this name, with these arguments behind the world."""

    def enter(function: Callable[..., Found]) -> Callable[..., Found]:
        ITEMS[name] = lambda world: function(world, *given, **named)
        return function

    return enter


# --- puzzles ---

SMALL: Words = {
    **{"arch.hidden_size": 32, "arch.num_heads": 2, "arch.expansion": 1, "arch.forward_dtype": "float32"},
    **{"device": "cpu", "compile": False, "lr": 1e-2, "lr_warmup_steps": 2, "dataloader_workers": 0, "log_interval": 1},
}
PUZZLES: Words = {
    **SMALL,
    **{"evaluators": [], "global_batch_size": 8, "epochs": 9, "eval_interval": 9},
    **{"arch.L_layers": 1, "arch.H_cycles": 2, "arch.L_cycles": 1, "arch.halt_max_steps": 3},
    **{"arch.puzzle_emb_ndim": 0, "arch.puzzle_emb_len": 0},
}


def make_sudoku(world: World, folder: Path) -> None:
    words = ["--generate", "4x4", "--count", "24", "--test-count", "10", "--seed", "0", "--num-workers", "1"]
    world.call("build_sudoku", *words, "--output-dir", folder)


def sudoku(world: World) -> Path:
    return world.made("data/sudoku", lambda folder: make_sudoku(world, folder))


def numbered_sudoku(world: World) -> Path:
    """The same with four puzzle identifiers, 0 left blank: the data set's format is numpy files and JSON."""
    import numpy as np

    def make(folder: Path) -> None:
        shutil.copytree(sudoku(world), folder)
        for split in ("train", "test"):
            file, facts = folder / split / "all__puzzle_identifiers.npy", folder / split / "dataset.json"
            np.save(file, 1 + np.arange(len(np.load(file)), dtype=np.int32) % 3)
            facts.write_text(json.dumps(json.loads(facts.read_text()) | {"num_puzzle_identifiers": 4}))
        (folder / "identifiers.json").write_text(json.dumps(["<blank>", "one", "two", "three"]))

    return world.made("data/numbered", make)


def puzzle_run(world: World, name: str, data: Path, *changes: Words) -> Path:
    given = {"data_paths": [str(data)]}
    return world.made(
        f"runs/{name}",
        lambda folder: world.call("pretrain", *options(PUZZLES, given, {"checkpoint_path": str(folder)}, *changes)),
    )


def last_step(run_dir: Path) -> Path:
    return (run_dir / "latest").resolve()


def eager_weights(world: World) -> Path:
    """Weights of a model whose rows want to halt at once, so that exploration matters."""
    from safetensors.torch import load_file, save_file

    def make(file: Path) -> None:
        words = {"arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 2, "max_steps": 1}
        run = puzzle_run(world, "before-eager", numbered_sudoku(world), words)
        weights = load_file(last_step(run) / "model.safetensors")
        (name,) = [key for key in weights if key.endswith("q_head.bias")]
        weights[name] = weights[name] * 0 + 5
        save_file(weights, file)

    return world.made("eager/model.safetensors", make)


@item("puzzles/attention")
@item("puzzles/mlp", {"arch.mlp_t": True, "arch.pos_encodings": "none", "arch.no_ACT_continue": False})
@item("puzzles/bfloat16", {"arch.forward_dtype": "bfloat16", "max_steps": 6})
@item(
    "puzzles/options",
    {"optimizer": "adamw", "grad_clip": 0.5, "gradient_accumulation_steps": 2, "ema": True, "ema_rate": 0.9},
    {"arch.grad_cycles": "all", "arch.norm": "pre", "arch.latent_init": "embedding"},
    {"eval.rollouts": 3, "eval.noise": 0.3, "eval.validation_split": 0.25, "arch.pos_encodings": "learned"},
    {"arch.depth_curriculum": "[{until: 0.5, H_cycles: 1, L_cycles: 1}]", "epochs": 12, "eval_interval": 6},
)
@item("puzzles/trm_singlez", {"arch": "trm_singlez", "max_steps": 6})
@item("puzzles/trm_hier6", {"arch": "trm_hier6", "max_steps": 6})
@item("puzzles/hrm", {"arch": "hrm", "arch.H_layers": 1, "max_steps": 6})
def puzzles(world: World, *changes: Words) -> Found:
    name = digest(repr(changes))
    return training(puzzle_run(world, name, sudoku(world), *changes))


@item("puzzles/transformers_baseline")
def plain(world: World) -> Found:
    words = {"arch": "transformers_baseline", "arch.H_layers": 2, "arch.H_cycles": 1, "max_steps": 6}
    run = world.fresh() / "run"
    left_out = ("arch.L_layers",)
    given = {key: value for key, value in PUZZLES.items() if key not in left_out} | words
    world.call("pretrain", *options(given, {"data_paths": [str(sudoku(world))], "checkpoint_path": str(run)}))
    return training(run)


@item("puzzles/embedding")
def embedding(world: World) -> Found:
    words = {"arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 2, "arch.halt_exploration_prob": 0.5}
    words |= {"load_checkpoint": str(eager_weights(world)), "puzzle_emb_lr": 1e-2, "epochs": 8, "eval_interval": 4}
    return training(puzzle_run(world, "embedding", numbered_sudoku(world), words))


@item("puzzles/resumed")
def resumed(world: World) -> Found:
    words = {"arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 2, "arch.halt_exploration_prob": 0.5, "ema": True}
    words |= {"load_checkpoint": str(eager_weights(world)), "checkpoint_path": str(world.fresh() / "run")}
    given = {"data_paths": [str(numbered_sudoku(world))], **words}
    world.call("pretrain", *options(PUZZLES, given, {"max_steps": 5}))
    world.call("pretrain", *options(PUZZLES, given, {"max_steps": 12, "resume": True}))
    return training(Path(words["checkpoint_path"]))


@item("puzzles/evaluated")
def evaluated(world: World) -> Found:
    folder = world.fresh() / "run"
    shutil.copytree(puzzle_run(world, digest(repr(())), sudoku(world)), folder, symlinks=True)
    words = {"data_paths": [str(sudoku(world))], "eval_only": True, "load_checkpoint": str(folder)}
    saves = {"eval_save_outputs": ["inputs", "labels", "preds", "logits", "q_halt_logits"]}
    out = world.call("pretrain", *options(PUZZLES, words, saves, {"checkpoint_path": str(folder)}))
    found = flat(json.loads(out))
    for place in sorted({file.parent for file in folder.rglob("*preds*")}):
        found |= tensors(place)
    return found


@item("data/sudoku", "build_sudoku", "--generate", "6x6", "--count", 6, "--test-count", 4, "--num-aug", 2)
@item("data/maze", "build_maze", "--generate", 5, "--count", 6, "--test-count", 4, "--aug")
def built(world: World, door: str, *words: Any) -> Found:
    folder = world.fresh() / "out"
    world.call(door, *words, "--seed", 3, "--num-workers", 1, "--output-dir", folder)
    return arrays(folder)


@item("data/arc")
def arc(world: World) -> Found:
    place = world.fresh()
    challenges, solutions = arc_puzzles()
    for subset in ("training", "evaluation"):
        shown = {(name if subset == "training" else f"{name}e"): value for name, value in challenges.items()}
        told = {(name if subset == "training" else f"{name}e"): value for name, value in solutions.items()}
        (place / f"x_{subset}_challenges.json").write_text(json.dumps(shown))
        (place / f"x_{subset}_solutions.json").write_text(json.dumps(told))
    words = ["--input-file-prefix", place / "x", "--output-dir", place / "out", "--num-aug", 3, "--seed", 3]
    world.call("build_arc", *words)
    found = arrays(place / "out")
    run = place / "run"
    given = {"data_paths": [str(place / "out")], "checkpoint_path": str(run), "evaluators": "[{name: arc@ARC}]"}
    given |= {"max_steps": 3, "epochs": 2, "eval_interval": 2, "arch.puzzle_emb_ndim": 32, "arch.puzzle_emb_len": 1}
    world.call("pretrain", *options(PUZZLES, given))
    return found | {f"run: {key}": value for key, value in training(run).items()}


# --- text ---

TEXT: Words = {
    **SMALL,
    **{"arch.L_layers": 1, "arch.H_cycles": 1, "arch.L_cycles": 1, "arch.halt_max_steps": 3},
    **{"arch.halt_mean_steps": 1.5, "global_batch_size": 4, "epochs": 1, "dataset.seq_len": 96},
    **{"dataset.test_ratio": 0.2, "dataset.source": "sample", "dataset.sample_size": 200},
}


def text_run(world: World, name: str, *changes: Words) -> Path:
    data = {"dataset.data_dir": str(world.place / "data" / "sample")}
    return world.made(
        f"runs/{name}",
        lambda folder: world.call("instruct", *options(TEXT, data, {"checkpoint_path": str(folder)}, *changes)),
    )


UNROLLED: Words = {"epochs": 8, "eval_interval": 8, "ema": True, "ema_rate": 0.9}
CARRY: Words = {"arch.recursion": "carry"}
LEARNED: Words = {"arch.recursion": "carry", "arch.halt_policy": "learned", "arch.halt_exploration_prob": 0.3}
RETNET: Words = {"arch": "retnet_tiny", "arch.H_layers": 1, "arch.chunk_size": 16, "epochs": 4}


@item("text/unrolled", "unrolled", UNROLLED)
@item("text/carry", "carry", CARRY, {"epochs": 2})
@item("text/carry_learned", "learned", LEARNED)
@item("text/trm_arch", "trm", {"arch": "trm", "arch.H_layers": 0})
@item("text/dense", "dense", {"arch": "dense_text", "arch.depth_curriculum": [], "arch.tie_embeddings": True})
def text(world: World, name: str, *changes: Words) -> Found:
    return training(text_run(world, name, *changes))


def retnet_run(world: World) -> Path:
    left_out = ("arch.L_layers", "arch.H_cycles", "arch.L_cycles", "arch.halt_max_steps", "arch.halt_mean_steps")
    given = {key: value for key, value in TEXT.items() if key not in left_out} | RETNET
    given |= {"dataset.data_dir": str(world.place / "data" / "sample")}
    return world.made(
        "runs/retnet", lambda folder: world.call("instruct", *options(given, {"checkpoint_path": str(folder)}))
    )


@item("text/retnet")
def retnet(world: World) -> Found:
    return training(retnet_run(world))


def sentencepiece(world: World) -> Path:
    """The tokenizer that a run on the built-in corpus keeps with its checkpoint."""
    return last_step(text_run(world, "carry", CARRY, {"epochs": 2})) / "tokenizer.model"


INPUTS = ("inputs", "labels", "positions", "documents", "is_prompt", "preds")


def batches(world: World, run: Path, split: str) -> Found:
    folder = world.fresh()
    world.call("inference", "--checkpoint", run, "--split", split, "--save-outputs", *INPUTS, "--output-dir", folder)
    found = {f"{split} {key}": value for key, value in tensors(folder).items()}
    for file in folder.glob("*.json"):
        found |= {f"{split} {key}": value for key, value in flat(json.loads(file.read_text())).items()}
    return found


@item("tokens/sample")
def sample_tokens(world: World) -> Found:
    run = text_run(world, "unrolled", UNROLLED)
    return batches(world, run, "test") | batches(world, run, "train")


@item("tokens/local", "SlimOrca.jsonl", {})
@item(
    "tokens/local_zst",
    "SlimOrca.jsonl.zst",
    {"dataset.packing": False, "dataset.truncate": "prompt", "dataset.seq_len": 40, "loss.reduction": "sequence"},
    {"arch.prefix_mask": True, "loss.chunked": False, "dataset.subset_size": 30},
)
def local_tokens(world: World, name: str, *changes: Words) -> Found:
    place = world.fresh()
    write_lines(place / "data" / name, instruct_records())
    words = {"dataset.source": "local", "dataset.data_dir": str(place / "data"), "max_steps": 3, "seed": 1}
    words |= {"dataset.tokenizer_path": str(sentencepiece(world)), "checkpoint_path": str(place / "run")}
    without_size = {
        key: value for key, value in TEXT.items() if key != "dataset.sample_size"
    }  # made corpora alone have one
    world.call("instruct", *options(without_size, words, *changes))
    found = training(place / "run")
    return found | batches(world, place / "run", "test") | batches(world, place / "run", "train")


# --- answers ---

QUESTIONS = ("What is 7 plus 8?", "Write the word cat backwards.", "Hello!")


def answers(world: World, run: Path, *words: Any) -> Found:
    fixed = ["--system-message", "", "--max-output-tokens", 12, "--message-file", "-", "--json", "--device", "cpu"]
    out = world.call("answer", "--checkpoint", run, *fixed, *words, stdin="".join(f"{q}\n" for q in QUESTIONS))
    found: Found = {}
    for number, line in enumerate(out.splitlines()):
        said = json.loads(line)
        found |= {f"{number} {key}": value for key, value in said.items() if key != "seconds"}
    return found


GREEDY = ("--temperature", 0)


@item("answers/exact", *GREEDY, "--mode", "exact")
@item("answers/recompute", *GREEDY, "--mode", "recompute")
@item("answers/one_by_one", *GREEDY, "--batch-size", 1, "--depth", 2)
@item("answers/sampled", "--temperature", 0.9, "--top-k", 20, "--top-p", 0.9, "--repetition-penalty", 1.1, "--seed", 3)
def unrolled_answers(world: World, *words: Any) -> Found:
    return answers(world, text_run(world, "unrolled", UNROLLED), *words)


@item("answers/last_step")
def refused_mode(world: World) -> Found:
    try:
        return unrolled_answers(world, *GREEDY, "--mode", "last_step")
    except FailedError as refusal:
        return {"refused with the figure": "46 to 51 %" in str(refusal)}


@item("answers/carry")
def carry_answers(world: World) -> Found:
    return answers(world, text_run(world, "carry", CARRY, {"epochs": 2}), *GREEDY)


@item("answers/retnet")
def retnet_answers(world: World) -> Found:
    return answers(world, retnet_run(world), *GREEDY)


@item("answers/leaving_early")
def leaving_early(world: World) -> Found:
    run = world.fresh() / "run"
    shutil.copytree(text_run(world, "unrolled", UNROLLED), run, symlinks=True)
    words = ["--checkpoint", run, "--max-loss-increase", 0.05, "--conversations", 20]
    found = flat(json.loads(world.call("calibrate", *words)))
    for rule in ("kl", "head"):
        found |= {f"{rule}: {key}": value for key, value in answers(world, run, *GREEDY, "--exit", rule).items()}
    return found


@item("answers/bigrams")
def bigrams(world: World) -> Found:
    out = world.call("bigram", "--checkpoint", text_run(world, "unrolled", UNROLLED))
    found = flat(json.loads(out))
    return {key: value for key, value in found.items() if str(world.place) not in str(value)}


# --- chat ---

CHAT: Words = {
    **SMALL,
    **{"arch.L_layers": 1, "global_batch_size": 4, "epochs": 8, "eval_interval": 8},
}


def pets(world: World) -> Path:
    """Conversations of examples/make_conversations.py."""
    return world.made("data/pets.json", lambda file: world.call("conversations", "--count", 60, "--output", file))


def pets_data(world: World) -> Path:
    words = ["--tokenizer", "train:320", "--max-length", 96, "--train-split", 0.8, "--num-workers", 1]
    return world.made(
        "data/pets",
        lambda folder: world.call("build_chat", "--input-file", pets(world), "--output-dir", folder, *words),
    )


def chat_run(world: World, name: str, *changes: Words) -> Path:
    data = {"data_paths": [str(pets_data(world))]}
    return world.made(
        f"runs/{name}",
        lambda folder: world.call(
            "pretrain", "--config-name", "cfg_chat", *options(CHAT, data, {"checkpoint_path": str(folder)}, *changes)
        ),
    )


@item("chat/plain", "chat")
@item(
    "chat/recursive",
    "deep",
    {"arch.H_cycles": 2, "arch.halt_max_steps": 3, "seq_len": 64, "epochs": 2, "eval_interval": 2},
)
def chat(world: World, name: str, *changes: Words) -> Found:
    given = [{("arch.seq_len" if key == "seq_len" else key): value for key, value in part.items()} for part in changes]
    return training(chat_run(world, name, *given))


@item("chat/answers")
def chat_answers(world: World) -> Found:
    run = chat_run(world, "chat")
    words = ["--checkpoint", run, "--temperature", 0, "--max-new-tokens", 16, "--no-stream", "--device", "cpu"]
    said = world.call("chat", *words, "--prompt", "I am Ada and I have 3 cats.")
    talk = world.call("chat", *words, "--interactive", stdin="I am Ada and I have 3 cats.\nHow many?\n")
    return {"prompt": said, "interactive": talk} | {f"json {k}": v for k, v in answers(world, run, *GREEDY).items()}


@item("tokens/pets")
def pets_tokens(world: World) -> Found:
    shown = world.call("show_sample", pets_data(world), "--count", 3, "--seed", 1)
    return arrays(pets_data(world)) | {"shown": digest(shown.replace(str(world.place), ""))}


@item("tokens/sharegpt", "sharegpt", "train:320")
@item("tokens/alpaca", "alpaca", "train:320", "--pack")
@item("tokens/openai", "openai", "train:320", "--long", "split", "--max-length", 64)
@item("tokens/openassistant", "openassistant", "train:320", "--loss-on", "all")
@item("tokens/byte_level", "sharegpt", "bytes", "--long", "drop", "--pack")
@item("tokens/llama_style", "sharegpt", "llama", "--format", "sharegpt")
@item("tokens/sentencepiece", "sharegpt", "model", "--subsample-size", 30)
def chat_tokens(world: World, form: str, tokenizer: str, *words: Any) -> Found:
    place = world.fresh()
    source = place / (
        "in.json" if form in ("sharegpt", "openai") else "in.jsonl.zst" if form == "alpaca" else "in.jsonl"
    )
    if source.suffix == ".json":
        source.write_text(json.dumps(chat_records(form), ensure_ascii=False), encoding="utf-8")
    else:
        write_lines(source, chat_records(form))
    if tokenizer == "bytes":
        tokenizer = str(world.made("tokenizers/bytes", write_bytes_tokenizer))
    elif tokenizer == "llama":
        tokenizer = str(world.made("tokenizers/llama", write_llama_tokenizer) / "tokenizer.json")
    elif tokenizer == "model":
        tokenizer = str(sentencepiece(world))
    common = ["--max-length", 128, "--train-split", 0.8, "--num-workers", 1, "--tokenizer", tokenizer, "--seed", 4]
    world.call("build_chat", "--input-file", source, "--output-dir", place / "out", *common, *words)
    return arrays(place / "out")


# --- distillation ---

STUDENT: Words = {
    **{"model_variant": "tiny", "student_overrides": "hidden_size=32 num_heads=2 H_layers=1 expansion=1"},
    **{"max_seq_length": 64, "use_bf16": False, "physical_batch_size": 2, "gradient_accumulation_steps": 2},
    **{"max_steps": 20, "warmup_batches": 4, "learning_rate": 1e-2, "min_lr": 1e-3, "weight_decay": 0.01},
    **{"teacher_topk": 16, "teacher_dtype": "float32", "eval_interval": 10, "eval_perplexity_samples": 6},
    **{"log_interval": 1, "device": "cpu", "use_wandb": False, "cosine_t0": 12},
}
TRM = "hidden_size=32 num_heads=2 L_layers=1 expansion=1 H_cycles=1 L_cycles=1 halt_max_steps=3 halt_policy=fixed"


def tokenizer(world: World) -> Path:
    return world.made("tokenizers/bytes", write_bytes_tokenizer)


def packed(world: World) -> Path:
    def make(folder: Path) -> None:
        source = world.place / "data" / "documents"
        records = document_records()
        write_lines(source / "first.jsonl", records[:80])
        write_lines(source / "more" / "second.jsonl.zst", records[80:120])
        write_lines(source / "more" / "third.jsonl.gz", records[120:])
        words = ["--input", source, "--output", folder, "--tokenizer", tokenizer(world), "--recursive"]
        world.call("preprocess", *words, "--max-seq-length", 64, "--val-fraction", 0.2, "--num-workers", 1)

    return world.made("data/packed", make)


def teacher(world: World) -> Path:
    return world.made("teacher", write_teacher)


def cache(world: World, name: str = "cache", *words: Any) -> Path:
    common = ["--data-path", packed(world), "--teacher-model", teacher(world), "--batch-size", 3, "--device", "cpu"]
    size = ["--topk", 16, "--shard-size", 16, "--dtype", "float32"]
    return world.made(
        f"caches/{name}", lambda folder: world.call("cache", *common, *size, "--output-dir", folder, *words)
    )


def places(world: World) -> Words:
    found = {"train_data_path": packed(world), "val_data_path": packed(world), "tokenizer_name": tokenizer(world)}
    return found | {"teacher_model": teacher(world)}


def student_run(world: World, name: str, *changes: Words) -> Path:
    return world.made(
        f"runs/{name}",
        lambda folder: world.call("distill", *flags(STUDENT, places(world), {"output_dir": folder}, *changes)),
    )


@item("tokens/packed")
def packed_tokens(world: World) -> Found:
    facts = flat(json.loads((packed(world) / "manifest.json").read_text()))
    small = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    return tables(packed(world)) | {f"manifest {key}": value for key, value in small.items()}


@item("distill/direct", "direct")
@item("distill/ce_only", "ce", {"pretrain_ce_only": True})
@item("distill/trm", "trm-student", {"student": "trm_text", "student_overrides": TRM, "max_steps": 10})
@item(
    "distill/options",
    "muon",
    {"optimizer_type": "muon", "divergence": "jsd", "teacher_temperature": 2.0, "max_steps": 8},
)
@item(
    "distill/reverse", "reverse", {"divergence": "reverse_kl", "tail": "renorm", "teacher_kind": "topk", "max_steps": 6}
)
@item(
    "distill/dense_bf16",
    "dense-kind",
    {"teacher_kind": "dense", "use_bf16": True, "optimizer_type": "adam_atan2", "max_steps": 6},
)
def distilled(world: World, name: str, *changes: Words) -> Found:
    return training(student_run(world, name, *changes))


@item("distill/recording")
def recording(world: World) -> Found:
    folder = world.place / "caches" / "recorded"
    words = {"cache_logits": True, "cache_dir": folder, "max_steps": 6, "eval_niah": True, "eval_niah_samples": 2}
    words |= {"eval_niah_lengths": 24, "init_from_teacher": "embed", "eval_interval": 6}
    words["student_overrides"] = f"{STUDENT['student_overrides']} tie_embeddings=false"
    run = student_run(world, "recording", words)
    return training(run) | {f"cache {key}": value for key, value in tables(folder).items()}


@item("distill/cached")
def cached(world: World) -> Found:
    found = {f"cache {key}": value for key, value in tables(cache(world)).items()}
    words = {"teacher_mode": "cached", "cache_dir": cache(world), "max_steps": 10}
    return found | training(student_run(world, "cached", words))


@item("distill/cached_sampled")
def cached_sampled(world: World) -> Found:
    words = ["--kind", "sampled", "--value-dtype", "u8", "--temperature", 2.0]
    folder = cache(world, "sampled", *words)
    found = {f"cache {key}": value for key, value in tables(folder).items()}
    more = {"teacher_mode": "cached", "cache_dir": folder, "teacher_kind": "sampled", "max_steps": 5}
    return found | training(student_run(world, "cached-sampled", more))


@item("distill/changed_mode")
def changed_mode(world: World) -> Found:
    """Text alone first, then the teacher, from the same folder."""
    folder = world.fresh() / "run"
    words = [STUDENT, places(world), {"output_dir": folder}]
    world.call("distill", *flags(*words, {"pretrain_ce_only": True, "max_steps": 4}))
    world.call("distill", *flags(*words, {"max_steps": 8, "resume_from": "latest"}))
    return training(folder)


@item("distill/answers")
def student_answers(world: World) -> Found:
    run = student_run(world, "direct")
    evaluation = flags(STUDENT, places(world), {"output_dir": run})
    perplexity = json.loads(world.call("perplexity", *evaluation, "--split", "val", "--with-teacher"))
    found = {key: value for key, value in flat(perplexity).items() if not isinstance(value, str)}
    return found | {f"said {key}": value for key, value in answers(world, run, *GREEDY).items()}


TUNING: Words = {
    **{"max_steps": 6, "epochs": 50, "physical_batch_size": 2, "gradient_accumulation_steps": 2},
    **{"learning_rate": 1e-2, "min_lr": 1e-3, "warmup_steps": 2, "eval_interval": 3, "save_interval": 0},
    **{"device": "cpu", "gradient_checkpointing": False, "log_interval": 1},
}


@item("teacher/lora", {"lora_rank": 4, "lora_alpha": 8})
@item("teacher/full", {"method": "full", "optimizer_type": "adamw"})
def tuned(world: World, *changes: Words) -> Found:
    folder = world.fresh() / "tuned"
    given = {"teacher_model": teacher(world), "tokenizer": tokenizer(world), "data_path": packed(world)}
    out = world.call("tune", *flags(TUNING, given, {"output_dir": folder}, *changes))
    numbers = {key: value for key, value in flat(json.loads(out)).items() if not isinstance(value, str)}
    return training(folder) | {f"result {key}": value for key, value in numbers.items()} | weights(folder)


@item("teacher/from_config")
def tuned_from_config(world: World) -> Found:
    config = world.fresh() / "teacher.json"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.write_text(json.dumps({"model_type": "llama", "num_key_value_heads": 2, **sizes}))
    given = {"init_config": config, "teacher_model": "none", "method": "full"}
    return ITEMS_TUNED(world, given)


def weights(folder: Path) -> Found:
    """A hash of every tensor of a folder that transformers can load."""
    from safetensors.numpy import load_file

    return {f"weight {key}": array(value) for key, value in sorted(load_file(folder / "model.safetensors").items())}


ITEMS_TUNED = tuned

# --- options ---


def options_shown(world: World, door: str) -> Found:
    if door == "bench":
        parts = {part: world.call("bench", part, "--help") for part in ("train", "generate", "load", "distill")}
        return {f"{part} {key}": value for part, text in parts.items() for key, value in options_of(text).items()}
    return options_of(world.call(door, "--help").replace(str(world.root), ""))


for _door in DOORS:
    if _door not in ("pretrain", "instruct"):
        ITEMS[f"help/{_door}"] = partial(options_shown, door=_door)


@item("help/pretrain", "pretrain")
@item("help/pretrain_chat", "pretrain", "--config-name", "cfg_chat")
@item("help/instruct", "instruct")
def config_shown(world: World, *words: Any) -> Found:
    return config_of(world.call(*words, "--help"))


def architectures(world: World) -> Found:
    """The options of every architecture, as the programs compose them."""
    import yaml

    found: Found = {}
    names = ("hrm", "looped_text", "retnet_350m", "retnet_500m", "transformers_baseline", "trm_hier6", "trm_singlez")
    for name in (*names, "dense_text", "retnet_tiny", "trm_tiny"):
        content = yaml.safe_load(world.call("pretrain", f"arch={name}", "--cfg", "job"))
        found |= {f"{name} {key}": value for key, value in flat(content["arch"]).items()}
    return found


ITEMS["help/architectures"] = architectures
