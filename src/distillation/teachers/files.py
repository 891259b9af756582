"""The files of a teacher: which they are, their fingerprint, and whether its ids mean the same as those of a corpus."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dataset.files.disk import file_sha256
from dataset.tokenization.tokenizer_json import JSON_FILE, open_json_tokenizer
from src.distillation.corpus.manifest import TokenizerFacts, pieces_sha256
from src.distillation.teachers.causal_lm import ADAPTER_CONFIG_FILE, CONFIG_FILE, adapter_folder

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


def model_files(name: str) -> list[Path]:
    """The configuration and the weights of a model that has been loaded from a folder or the Hub."""
    folder = Path(name) if Path(name).is_dir() else _snapshot(name)
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return [folder / CONFIG_FILE, *(folder / part for part in sorted(set(index["weight_map"].values())))]


def adapter_files(path: str) -> list[Path]:
    """The configuration and the weights of an adapter; weights of another format are refused, for they may hold code."""
    folder = adapter_folder(path)
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        raise ValueError(
            f"The adapter {folder} holds no {ADAPTER_WEIGHTS_FILE}. Save it again with safe_serialization=True; other "
            "formats are not read."
        )
    return [folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_WEIGHTS_FILE]


def files_fingerprint(files: Sequence[Path]) -> str:
    facts = [[file.name, file_sha256(file)] for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def weights_fingerprint(model: Any) -> str:
    """Of a model that is in memory only."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def note_of_other_pieces(folder: Path, tokenizer: TokenizerFacts) -> str | None:
    """What to print if the tokenizer beside a model gives ids another meaning than that of the corpus does.

    It may: names of special tokens change when a model is tuned, and a corpus of a SentencePiece model cannot be
    compared.
    """
    if not (folder / JSON_FILE).is_file():
        return None
    pieces = open_json_tokenizer(folder / JSON_FILE).pieces()[: tokenizer.vocab_size]
    if pieces_sha256(pieces, tokenizer.bos_id, tokenizer.eos_id) == tokenizer.sha256:
        return None
    return (
        f"the pieces of {folder / JSON_FILE} are not those of the corpus, which was made with {tokenizer.name}. If more "
        "than names of special tokens differ, the teacher does not understand the corpus"
    )


def _snapshot(name: str) -> Path:
    """Where the Hub's files lie since the model was loaded."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True, allow_patterns=[CONFIG_FILE, "*.safetensors*"]))
