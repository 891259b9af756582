"""Opens causal models of Hugging Face: a local folder or a name of the Hub, with or without a LoRA adapter."""

import json
import os
from pathlib import Path
from typing import Any

import torch

CONFIG_FILE, ADAPTER_CONFIG_FILE = "config.json", "adapter_config.json"
ADAPTER_FOLDER = "adapter"  # below a folder that holds a merged model
INSTALL = 'Install it: pip install -e ".[distill]"'


def load_causal_lm(name: str, *, dtype: torch.dtype, adapter_path: str | None = None) -> Any:
    """The model with weights of `dtype`, ready to evaluate; an adapter is merged into it."""
    transformers = import_transformers()
    _check_place(name)
    # The keyword was renamed within the range of versions that we accept.
    key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    settings: dict[str, Any] = {key: dtype, "attn_implementation": "sdpa", "use_safetensors": True}
    settings["trust_remote_code"] = False  # by default the user is asked, and may run a stranger's code
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:  # also gated, unknown, out of reach, and not a causal model
        raise ValueError(
            f"The model {name} cannot be loaded: {' '.join(str(error).split())[:400]} Give a folder with {CONFIG_FILE} "
            "and model.safetensors, or a name of the Hub; if the model is gated, accept its licence and set HF_TOKEN."
        ) from error
    if adapter_path is not None:
        model = _with_adapter(model, adapter_path)
    return model.eval()


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


def _check_place(name: str) -> None:
    """An adapter beside merged weights would be put on them a second time; an adapter alone is not a model."""
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return
    if (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} holds a whole model and an adapter beside it, which would be applied to it once more. If the "
            f"weights are merged already, move {ADAPTER_CONFIG_FILE} and adapter_model.safetensors to "
            f"{folder / ADAPTER_FOLDER}."
        )
    base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise ValueError(
        f"{folder} holds an adapter but no model. Name the base model as teacher_model ({base}) and this folder as "
        "teacher_adapter_path."
    )


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
