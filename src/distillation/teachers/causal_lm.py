"""Opens causal models of Hugging Face, with or without a LoRA adapter; their files, fingerprints and limits."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dataset.files.disk import file_sha256
from dataset.files.download import hub_problem, offline_remedy
from dataset.tokenization.lookup import HUB_NAME
from dataset.tokenization.tokenizer_json import JSON_FILE, open_json_tokenizer
from src.distillation.corpus.manifest import TokenizerFacts, pieces_sha256

CONFIG_FILE, ADAPTER_CONFIG_FILE = "config.json", "adapter_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FOLDER = "adapter"  # below a folder that holds a merged model
MERGED_ADAPTERS = "merged_adapters"  # in the config.json of a model: SHA-256 of the adapters in its weights
INSTALL = 'Install it: pip install -e ".[distill]"'


def load_causal_lm(name: str, *, dtype: torch.dtype, adapter_path: str | None = None) -> Any:
    """The model with weights of `dtype`, ready to evaluate; an adapter is merged into it unless its weights hold it."""
    transformers = import_transformers()
    _check_place(name)
    # The keyword was renamed within the range of versions that we accept.
    key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    settings: dict[str, Any] = {key: dtype, "attn_implementation": "sdpa", "use_safetensors": True}
    settings["trust_remote_code"] = False  # by default the user is asked, and may run a stranger's code
    problem = hub_problem() if HUB_NAME.fullmatch(name) and not Path(name).exists() else None
    try:
        # transformers asks the Hub about some files even if told not to; a folder keeps it from that.
        place = name if problem is None else hub_folder(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(place, **settings)
        model.name_or_path = model.config.name_or_path = name
    except (OSError, ValueError) as error:  # also gated, unknown, out of reach, and not a causal model
        cause = f"{problem}. {offline_remedy(name)}" if problem else " ".join(str(error).split())[:400]
        raise ValueError(
            f"The model {name} cannot be loaded: {cause} Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a name of "
            "the Hub; if the model is gated, accept its licence and set HF_TOKEN."
        ) from error
    if adapter_path is not None:
        if holds_adapter(name, adapter_path):
            print(
                f"note: the weights of {name} hold the adapter of {adapter_path} already, so it is applied once, not "
                "twice. One of teacher_model and teacher_adapter_path is enough",
                file=sys.stderr,
            )
        else:
            model = _with_adapter(model, adapter_path)
    return model.eval()


def holds_adapter(name: str, adapter_path: str) -> bool:
    """Whether the weights of a model that has been loaded hold this adapter already.

    Its configuration says so, or the same adapter lies below it, as in what tuning a teacher writes.
    """
    folder = model_files(name)[0].parent
    weights = adapter_sha256(adapter_path)
    if weights in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get(MERGED_ADAPTERS, []):
        return True
    below = folder / ADAPTER_FOLDER
    return (below / ADAPTER_CONFIG_FILE).is_file() and adapter_sha256(str(below)) == weights


def adapter_sha256(path: str) -> str:
    return file_sha256(adapter_files(path)[1])


def adapter_folder(path: str) -> Path:
    """Where an adapter lies: in the folder itself, or below it if a merged model stands there."""
    folder = Path(path)
    for place in (folder, folder / ADAPTER_FOLDER):
        if (place / ADAPTER_CONFIG_FILE).is_file():
            return place
    found = (
        f"it holds {', '.join(sorted(os.listdir(folder))[:10]) or 'nothing'}" if folder.is_dir() else "no such folder"
    )
    raise ValueError(
        f"There is no {ADAPTER_CONFIG_FILE} in {folder} or {folder / ADAPTER_FOLDER} ({found}). Make an adapter with "
        "python scripts/finetune_teacher.py --config configs/teacher_ft.yaml, or name the folder of one."
    )


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"A teacher needs the package transformers. {INSTALL}") from error
    return transformers


def import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"An adapter needs the package peft. {INSTALL}") from error
    return peft


def hub_folder(name: str) -> Path:
    """Where loading a model of the Hub has put its files."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json", "*.safetensors"]))


def model_files(name: str) -> list[Path]:
    """The configuration and the weights of a model that has been loaded from a folder or the Hub."""
    folder = Path(name) if Path(name).is_dir() else hub_folder(name)
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return [folder / CONFIG_FILE, *(folder / part for part in sorted(set(index["weight_map"].values())))]


def adapter_files(path: str) -> list[Path]:
    """The configuration and the weights of an adapter; weights of another format are refused, for they may hold code."""
    folder = adapter_folder(path)
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} holds no {ADAPTER_WEIGHTS_FILE}. Save the adapter with safe_serialization=True.")
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


def dtype_of(asked: str, device: torch.device) -> torch.dtype:
    """By default half the memory where bfloat16 is computed with as fast as it can be, exact elsewhere."""
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    found: torch.dtype = getattr(torch, asked)
    return found


def _check_place(name: str) -> None:
    """An adapter beside merged weights would be put on them a second time; an adapter alone is not a model."""
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return
    if (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} holds a model and beside it an adapter, which would be applied once more. If it is merged already, "
            f"move {ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE} to {folder / ADAPTER_FOLDER}."
        )
    base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    remedy = f"Set teacher_model to its base model ({base}) and teacher_adapter_path to this folder"
    raise ValueError(f"{folder} holds an adapter but no model. {remedy}.")


def _with_adapter(model: Any, adapter_path: str) -> Any:
    folder = adapter_folder(adapter_path)
    peft = import_peft()
    try:
        return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The adapter {folder} does not fit {model.config.name_or_path}: {' '.join(str(error).split())[:400]} Use the "
            "base model that it was made for (base_model_name_or_path in its configuration)."
        ) from error
