"""Opens a checkpoint to generate with: the model, its tokenizer, and the template of its conversations."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataset.common import text_metadata
from dataset.text.conversation import Turn
from dataset.tokenization.protocol import Tokenizer
from engine.build import text as build_text
from engine.build.chat import conversation_template
from engine.checkpoints.load import load_averaged, load_checkpoint, resolve_checkpoint
from engine.config.schema import InstructConfig, TextConfig
from engine.generate.options import OpenOptions
from engine.inference import checkpoint_config
from engine.runtime.devices import start_runtime
from models.act import ActModel
from models.kv_cache import cast_for_reading, check_can_decode


class Template(Protocol):
    """How turns become the ids that an answer follows."""

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]: ...


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, ready to decode, with what turns conversations into ids and back."""

    path: Path
    config: TextConfig
    model: ActModel
    tokenizer: Tokenizer
    template: Template
    stop_ids: frozenset[int]

    @property
    def window(self) -> int:
        """Positions that prompt and answer share."""
        return self.model.config.seq_len

    def special_id(self, text: str) -> int | None:
        """The id of a special token, such as </s> or <|endassistant|>; None for any other text."""
        named = getattr(self.tokenizer, "special_ids", {"</s>": self.tokenizer.eos_id})
        return named.get(text)


def load_model(options: OpenOptions) -> LoadedModel:
    """The model of an instruction, chat or distilled checkpoint with its own config and tokenizer.

    A flag or an override wins over what the checkpoint carries; averaged weights are taken where there are any.
    """
    path = resolve_checkpoint(options.path, newest=options.newest)
    if options.newest and len(glob.glob(options.path)) > 1:
        print(f"{options.path} matches several checkpoints; taking the newest, {path}", file=sys.stderr)
    loaded = load_checkpoint(path)
    device = [f"device={options.device}"] if options.device else []
    config = checkpoint_config(loaded, options.config_name, [*device, "resume=false", *options.overrides])
    if config.arch.options.get("causal") is not True:
        raise ValueError(
            f"{path} was trained before causal training: its config has no arch.causal=true, so the model read the "
            "answers it was to predict and cannot continue a text. Train it again with the present code."
        )
    tokenizer_path = options.tokenizer_path or (str(loaded.files[0]) if loaded.files else None)
    if isinstance(config, InstructConfig) and tokenizer_path is not None:
        dataset = config.dataset.model_copy(update={"tokenizer_path": tokenizer_path})
        config = config.model_copy(update={"dataset": dataset})
    tokenizer, template, stop_ids = conversation_template(config, tokenizer_path, path)
    runtime = start_runtime(config.device, False, config.seed)
    metadata = text_metadata(config.row_length, tokenizer.vocab_size, tokenizer.pad_id)
    head = build_text.build_text_head(config, metadata, runtime)
    load_averaged(head, loaded)
    model = head.model.eval()
    check_can_decode(model, 1)
    cast_for_reading(model)
    return LoadedModel(path, config, model, tokenizer, template, stop_ids)
