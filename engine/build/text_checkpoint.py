"""Opens a checkpoint of text, to evaluate or to generate with: its config and tokenizer, and its weights in a model."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.chat.template import ChatEncoder
from dataset.common import PuzzleDatasetMetadata, text_metadata
from dataset.text.template import ConversationEncoder
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import Tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer
from engine.build.text import TextSource, build_text_head, build_text_task
from engine.checkpoints.load import Checkpoint, load_averaged, load_checkpoint
from engine.config.check import check, is_supervise_idle
from engine.config.compose import CONFIG_DIR, composed
from engine.config.parse import ConfigError
from engine.config.text import ChatConfig, InstructConfig, TextConfig
from engine.generate.options import OpenOptions
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.text import TextTask
from models.act import ActModel
from models.kv_cache import cast_for_reading, check_can_decode
from models.losses.text import TextLossHead


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint with the config it is opened with and the tokenizer that was named, else its own."""

    stored: Checkpoint
    config: TextConfig
    tokenizer_path: str | None

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def instruct_config(self) -> InstructConfig:
        """The config, which must be that of instruction training, whose data can be loaded again."""
        if not isinstance(self.config, InstructConfig):
            raise ValueError(
                f"{self.path} was trained on chat; expected a checkpoint of instruction training. Evaluate it with "
                "pretrain.py --config-name cfg_chat eval_only=true load_checkpoint=..."
            )
        return self.config

    def head(self, metadata: PuzzleDatasetMetadata, runtime: Runtime) -> TextLossHead:
        """The model and its loss, with the averaged weights where the checkpoint has them."""
        head = build_text_head(self.config, metadata, runtime)
        load_averaged(head, self.stored)
        return head

    def task(self, source: TextSource, runtime: Runtime) -> TextTask:
        """What evaluates the model on the source."""
        return build_text_task(self.config, self.head(source.metadata, runtime), source, runtime)


def open_text_checkpoint(
    options: OpenOptions, changes: Sequence[str] = (), stored: Checkpoint | None = None
) -> TextCheckpoint:
    """Load it unless it was `stored`; `changes` are `key=value` words of the caller, which the overrides of the options win
    over."""
    stored = stored or load_checkpoint(options.path, newest=options.newest)
    if options.newest and len(glob.glob(options.path)) > 1:
        print(f"{options.path} matches several checkpoints; taking the newest, {stored.path}", file=sys.stderr)
    tokenizer_path = options.tokenizer_path or (str(stored.files[0]) if stored.files else None)
    device = [f"device={options.device}"] if options.device else []
    words = ["resume=false", *device, *changes, *options.overrides]
    return TextCheckpoint(stored, _config(stored, options.config_name, tokenizer_path, words), tokenizer_path)


def _config(stored: Checkpoint, config_name: str, tokenizer_path: str | None, words: Sequence[str]) -> TextConfig:
    """The config that the checkpoint was trained with (else the named one), changed by `key=value` words."""
    from omegaconf import OmegaConf

    own = stored.config()
    if own is not None:
        if isinstance(data := own.get("dataset"), dict):  # once subset_size held for both splits
            data.setdefault("test_size", data.get("subset_size", 1000))
        base = OmegaConf.create(own)
    else:
        print(f"{stored.path} carries no config; taking {config_name}, and not knowing its split", file=sys.stderr)
        if not (CONFIG_DIR / f"{config_name}.yaml").is_file():
            names = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.yaml")))
            raise ValueError(f"There is no config {config_name!r}. Choose one of {names}.")
        base = OmegaConf.create(composed(config_name, []))
    arch = base.get("arch")
    if OmegaConf.is_dict(arch) and is_supervise_idle(dict(arch)):  # as older versions of arch=trm_text wrote it
        arch.supervise = "step"  # which is the same
    words = [word.removeprefix("++").removeprefix("+") for word in words]
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ConfigError([f"{word!r} is not key=value" for word in wrong])
    for word in words:
        try:
            OmegaConf.from_dotlist([word])
        except Exception as error:  # of many classes: of YAML, of OmegaConf, and of Python
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(
                [f"{word!r} is not key=value with a value in YAML, put it into quotes ({reason})"]
            ) from error
    if "dataset" in base and tokenizer_path is not None:
        OmegaConf.update(base, "dataset.tokenizer_path", tokenizer_path)
    data = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(words)), resolve=True)
    assert isinstance(data, dict)
    if "dataset" not in data and data.get("dataset_type") != "chat":
        raise ValueError(
            f"{stored.path} was not trained on conversations: its config names the data {data.get('data_paths')}. "
            "Evaluate it with pretrain.py eval_only=true load_checkpoint=..., or give an instruction checkpoint."
        )
    kind = InstructConfig if "dataset" in data else ChatConfig
    config = check(kind, {str(key): value for key, value in data.items()})
    assert isinstance(config, TextConfig)
    return config


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, ready to decode, with what turns conversations into ids and back."""

    path: Path
    config: TextConfig
    model: ActModel
    tokenizer: Tokenizer
    template: ChatEncoder | ConversationEncoder
    stop_ids: frozenset[int]

    @property
    def window(self) -> int:
        """Positions that prompt and answer share."""
        return self.model.config.seq_len

    def special_id(self, text: str) -> int | None:
        """The id of a special token, such as </s> or <|endassistant|>; None for any other text."""
        named = getattr(self.tokenizer, "special_ids", {"</s>": self.tokenizer.eos_id})
        return named.get(text)


def load_model(options: OpenOptions, stored: Checkpoint | None = None) -> LoadedModel:
    """The model of an instruction, chat or distilled checkpoint, loaded here unless it was, with its own config and tokenizer.

    A flag or an override wins over what the checkpoint carries; averaged weights are taken where there are any.
    """
    opened = open_text_checkpoint(options, stored=stored)
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


def conversation_template(
    config: TextConfig, tokenizer_path: str | None, checkpoint: Path
) -> tuple[Tokenizer, ChatEncoder | ConversationEncoder, frozenset[int]]:
    """Tokenizer, template and the ids that end an answer, of a checkpoint of chat or of instruction training."""
    if isinstance(config, ChatConfig):
        if tokenizer_path is None:
            raise ValueError(f"{checkpoint} carries no tokenizer. Name one with --tokenizer-path.")
        chat_tokenizer = load_chat_tokenizer(tokenizer_path)
        chat_encoder = ChatEncoder(chat_tokenizer)
        return chat_tokenizer, chat_encoder, chat_encoder.stop_ids
    assert isinstance(config, InstructConfig)
    tokenizer = load_tokenizer(find_tokenizer(config.dataset.tokenizer_path))
    return tokenizer, ConversationEncoder(tokenizer, template=config.dataset.template), frozenset([tokenizer.eos_id])
