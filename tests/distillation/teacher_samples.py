"""A tiny Llama on disk, a Markov corpus that it can learn, and options that tune the one on the other in seconds."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

from engine.run import train
from src.distillation.tuning.config import TeacherFtConfig
from src.distillation.tuning.job import TuneTeacherJob
from tests.distillation.corpus_samples import preprocess_folder, write_jsonl

VOCAB_SIZE = 259  # of the byte tokenizer
BOS, EOS, PAD = 256, 257, 257
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**(SIZES | changes))


def write_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(**changes)).save_pretrained(folder)
    return folder


@cache
def markov_texts(count: int, seed: int) -> list[dict[str, str]]:
    """Words in which each of eight letters is followed by one of two."""
    rng = random.Random(seed)
    follows = {letter: random.Random(letter).sample("abcdefgh", 2) for letter in "abcdefgh"}
    texts = []
    for _ in range(count):
        text = rng.choice("abcdefgh")
        for _ in range(rng.randint(10, 40)):
            text += rng.choice(follows[text[-1]])
        texts.append({"text": text})
    return texts


def write_corpus(root: Path, count: int = 160, seed: int = 0) -> Path:
    """Rows of 64 tokens in `root/packed`, a fifth of the documents held out, with the tokenizer in `root/tokenizer`."""
    write_jsonl(root / "raw" / "markov.jsonl", list(markov_texts(count, seed)))
    preprocess_folder(root, "--val-fraction", "0.2", "--force")
    return root / "packed"


def options(root: Path, **changes: Any) -> TeacherFtConfig:
    """Tunes `root/teacher` on `root/packed` into `root/tuned`."""
    given: dict[str, Any] = {
        "teacher_model": str(root / "teacher"),
        "tokenizer": str(root / "tokenizer"),
        "data_path": str(root / "packed"),
        "output_dir": str(root / "tuned"),
        "lora_rank": 8,
        "lora_alpha": 16,
        "max_steps": 6,
        "epochs": 50,
        "physical_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "min_lr": 1e-3,
        "warmup_steps": 2,
        "eval_interval": 3,
        "save_interval": 0,
        "device": "cpu",
        "gradient_checkpointing": False,
        "log_interval": 1,
    }
    return TeacherFtConfig.model_validate(given | changes)


def finetune(config: TeacherFtConfig) -> dict[str, Any] | None:
    return train(TuneTeacherJob(config))
