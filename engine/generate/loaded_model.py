"""Opens a checkpoint to talk to: model, tokenizer, and the way it writes conversations down."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dataset.text.conversation import ConversationEncoder, Turn
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import Tokenizer
from engine.build import text as build_text
from engine.checkpoints.load import Checkpoint, load_checkpoint, load_weights, resolve_checkpoint
from engine.config.schema import ChatConfig, InstructConfig, TextConfig
from engine.generate.decode import ExitRule
from engine.inference import checkpoint_config
from engine.runtime.devices import start_runtime
from models.act import ActModel
from models.kv_cache import cast_for_reading, check_can_remember

EXIT_FILE = "exit.json"  # in the folder of a checkpoint: the thresholds that scripts/calibrate_exit.py found


class Dialogue(Protocol):
    """How turns become the ids that an answer follows."""

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]: ...


@dataclass(frozen=True)
class Speaker:
    """What can answer."""

    path: Path
    config: TextConfig
    model: ActModel
    tokenizer: Tokenizer
    dialogue: Dialogue
    stop_ids: frozenset[int]

    @property
    def window(self) -> int:
        """Positions that prompt and answer share."""
        return self.model.config.seq_len

    def special_id(self, text: str) -> int | None:
        """The id of a special token, such as </s> or <|endassistant|>; None for any other text."""
        named = getattr(self.tokenizer, "special_ids", {"</s>": self.tokenizer.eos_id})
        return named.get(text)

    def exit_rule(self, kind: str, threshold: float | None) -> ExitRule | None:
        """The rule with the given threshold, else with the one that was calibrated on this checkpoint."""
        if kind == "none":
            if threshold is not None:
                raise ValueError("--exit-threshold needs a rule to belong to: --exit kl, margin or head.")
            return None
        if threshold is None:
            threshold = calibrated(self.path, kind)
        return ExitRule(kind, threshold)  # type: ignore[arg-type]  # the rule checks its kind


def calibrated(path: Path, kind: str) -> float:
    """The threshold in the checkpoint's exit.json."""
    file = path / EXIT_FILE
    if not file.is_file():
        raise ValueError(
            f"{path} has no calibrated thresholds ({EXIT_FILE}). Run python scripts/calibrate_exit.py --checkpoint "
            f"{path}, or give --exit-threshold."
        )
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{file} is no JSON ({problem}). Calibrate again, or give --exit-threshold.") from None
    entry = found.get(kind) if isinstance(found, dict) else None
    threshold = entry.get("threshold") if isinstance(entry, dict) else None
    if not isinstance(threshold, int | float):
        raise ValueError(f"{file} holds no threshold for {kind!r}. Calibrate again, or give --exit-threshold.")
    return float(threshold)


def open_speaker(
    checkpoint: str,
    *,
    newest: bool = False,
    config_name: str = "cfg_pretrain_instruct",
    tokenizer_path: str | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Speaker:
    """The model of a checkpoint with its own config and tokenizer; a flag or override goes before these.

    With `newest` a pattern may match several checkpoints, of which the newest is taken.
    """
    path = resolve_checkpoint(checkpoint, newest=newest)
    loaded = load_checkpoint(path)
    chosen = [f"device={device}"] if device else []
    config = checkpoint_config(loaded, config_name, [*chosen, "resume=false", *overrides])
    if config.arch.options.get("causal") is not True:
        raise ValueError(
            f"{path} was trained before causal training: its config has no arch.causal=true, so the model read the "
            "answers it was to predict and cannot go on with a text. Train it anew with the present code."
        )
    tokenizer, dialogue, stop_ids = voice_of(config, loaded, tokenizer_path)
    runtime = start_runtime(config.device, False, config.seed)
    metadata = build_text.text_metadata(config.row_length, tokenizer.vocab_size, tokenizer.pad_id)
    head = build_text.build_text_head(config, metadata, runtime)
    load_weights(head, loaded.weights | (loaded.ema or {}), source=str(path))
    model = head.model.eval()
    check_can_remember(model, 1)
    cast_for_reading(model)
    return Speaker(path, config, model, tokenizer, dialogue, stop_ids)


def voice_of(
    config: TextConfig, loaded: Checkpoint, tokenizer_path: str | None
) -> tuple[Tokenizer, Dialogue, frozenset[int]]:
    """Tokenizer, template and the ids that end an answer, of instruction training or of chat."""
    given = tokenizer_path or (str(loaded.files[0]) if loaded.files else None)
    if isinstance(config, ChatConfig):
        from engine.build import chat as build_chat

        return build_chat.chat_voice(given, loaded.path)
    assert isinstance(config, InstructConfig)
    tokenizer = load_tokenizer(find_tokenizer(given or config.dataset.tokenizer_path))
    return tokenizer, ConversationEncoder(tokenizer), frozenset([tokenizer.eos_id])
