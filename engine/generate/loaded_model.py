"""Opens a checkpoint to generate with: the model, its tokenizer, and the template of its conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataset.common import text_metadata
from dataset.text.conversation import Turn
from dataset.tokenization.protocol import Tokenizer
from engine.build.chat import conversation_template
from engine.build.text_checkpoint import open_text_checkpoint
from engine.config.schema import TextConfig
from engine.generate.options import OpenOptions
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
    opened = open_text_checkpoint(options)
    config, path = opened.config, opened.path
    if config.arch.options.get("causal") is not True:
        raise ValueError(
            f"{path} was trained before causal training: its config has no arch.causal=true, so the model read the "
            "answers it was to predict and cannot continue a text. Train it again with the present code."
        )
    tokenizer, template, stop_ids = conversation_template(config, opened.tokenizer_path, path)
    runtime = start_runtime(config.device, False, config.seed)
    metadata = text_metadata(config.row_length, tokenizer.vocab_size, tokenizer.pad_id)
    model = opened.head(metadata, runtime).model.eval()
    check_can_decode(model, 1)
    cast_for_reading(model)
    return LoadedModel(path, config, model, tokenizer, template, stop_ids)
