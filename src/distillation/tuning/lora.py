"""The model that a teacher's tuning trains, with an adapter or as a whole, and the files it is saved to."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.teachers.causal_lm import (
    ADAPTER_FOLDER,
    CONFIG_FILE,
    MERGED_ADAPTERS,
    adapter_sha256,
    import_peft,
    import_transformers,
    load_causal_lm,
)
from src.distillation.tuning.config import TeacherFtConfig


class TunedTeacher(nn.Module):
    """A causal model in training, whose state, and so a checkpoint, holds the trained weights only."""

    def __init__(self, model: Any, has_adapter: bool) -> None:
        super().__init__()
        self.model = model
        self.has_adapter = has_adapter
        self.trained = {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    @property
    def causal(self) -> Any:
        """The causal model itself, below the adapter's shell; the adapter acts in its layers."""
        return self.model.get_base_model() if self.has_adapter else self.model

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]  # of two overloads
        weights = super().state_dict(*args, **kwargs)
        return {name: value for name, value in weights.items() if name in self.trained}

    def num_trained(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def merged(self) -> "TunedTeacher":
        """The same model with the adapter merged into its weights; this one must not be used afterwards."""
        return TunedTeacher(self.model.merge_and_unload(), False) if self.has_adapter else self


def open_teacher_to_tune(config: TeacherFtConfig, tokenizer: TokenizerFacts, dtype: torch.dtype) -> TunedTeacher:
    """The model before its first step. Weights that are trained are float32, frozen ones are of `dtype`."""
    if config.init_config is not None:
        return TunedTeacher(random_model(Path(config.init_config), tokenizer), False)
    assert config.teacher_model is not None
    if config.method == "full":
        return TunedTeacher(load_causal_lm(config.teacher_model, dtype=torch.float32), False)
    return TunedTeacher(with_lora(load_causal_lm(config.teacher_model, dtype=dtype), config), True)


def random_model(file: Path, tokenizer: TokenizerFacts) -> Any:
    """A causal model with random weights, from a config.json; what that lacks about tokens is the corpus'."""
    transformers = import_transformers()
    if not file.is_file():
        raise ValueError(f"There is no {file}. Give the {CONFIG_FILE} of a causal model, such as a small Llama.")
    of_tokens = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    try:
        facts = of_tokens | json.loads(file.read_text(encoding="utf-8"))
        model_config = transformers.AutoConfig.for_model(facts.pop("model_type", None), **facts)
        model = transformers.AutoModelForCausalLM.from_config(model_config, attn_implementation="sdpa")
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{file} does not describe a causal model: {' '.join(str(error).split())[:300]} Expected JSON with "
            '"model_type": "llama" and its sizes.'
        ) from error
    return model.float()


def with_lora(model: Any, config: TeacherFtConfig) -> Any:
    """The model with an adapter of the configured rank on exactly the configured layers; all else is frozen."""
    peft = import_peft()
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    missing = [target for target in config.target_modules if not any(_names(name, target) for name in linear)]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
        there = f"{model.config.name_or_path} has {', '.join(known)}"
        raise ValueError(f"target_modules: there is no linear layer {', '.join(missing)}. {there}.")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        bias="none",
    )
    return peft.get_peft_model(model, settings)


def _names(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def save_adapter(teacher: TunedTeacher, output_dir: Path) -> Path:
    """adapter_config.json and adapter_model.safetensors, in a folder of their own.

    Beside a merged model transformers would find them and put the adapter on the merged weights once more.
    """
    folder = output_dir / ADAPTER_FOLDER
    with _written_whole(folder) as unfinished:
        teacher.model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
    # A model that the adapter is merged into says so, so that nobody applies it to that a second time.
    merged = [*getattr(teacher.causal.config, MERGED_ADAPTERS, []), adapter_sha256(str(folder))]
    setattr(teacher.causal.config, MERGED_ADAPTERS, merged)
    return folder


def save_model(teacher: TunedTeacher, tokenizer_files: Sequence[Path], output_dir: Path) -> Path:
    """config.json, model.safetensors and the tokenizer's files: all that `from_pretrained` reads."""
    assert not teacher.has_adapter
    with _written_whole(output_dir) as unfinished:
        teacher.model.save_pretrained(str(unfinished))
        for file in tokenizer_files:
            shutil.copyfile(file, unfinished / file.name)
    return output_dir


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A directory to write to, whose files are moved to `folder` when all are there, the configuration last: it is what
    makes the directory a model."""
    unfinished = folder / f".unfinished-{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for file in sorted(unfinished.iterdir(), key=lambda file: file.suffix == ".json"):
            if file.suffix != ".md":  # peft writes a model card of blanks
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(unfinished)
