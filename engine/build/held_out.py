"""Keeps evaluation apart from training: a checkpoint is evaluated on its own split, or the overlap is counted."""

import hashlib
import sys
from dataclasses import replace
from typing import Any

from dataset.text.slimorca import BUILT_IN, SlimOrcaConfig, corpus_digest, read_texts
from engine.build.corpus import corpus_config
from engine.checkpoints.load import Checkpoint
from engine.config.parse import ConfigError, parse
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig, TextDataConfig

SPLIT_RULE = ("test_ratio", "seed")  # and the corpus; sizes only cut a split short


def check_split(stored: Checkpoint, config: InstructConfig, split: str = "test", *, allow_other: bool = False) -> None:
    """Refuse another split than the one the checkpoint was trained beside; if it is allowed, print the overlap."""
    own = stored.config()
    if own is None:
        return
    asked, trained = corpus_config(config.dataset), _trained_corpus(own.get("dataset") or {})
    is_same_corpus = corpus_digest(asked) == (stored.meta.get("corpus") or _known_digest(trained, asked))
    differences = [
        f"dataset.{name}={getattr(asked, name)} instead of {getattr(trained, name)}"
        for name in SPLIT_RULE
        if getattr(asked, name) != getattr(trained, name)
    ]
    if not is_same_corpus and asked.source in BUILT_IN and trained.source in BUILT_IN:
        differences.append(f"{corpus_digest(asked)} instead of {corpus_digest(trained)}")
    elif not is_same_corpus:
        differences.append(f"the corpus of dataset.data_dir={asked.folder} instead of that of {trained.folder}")
    if not differences:
        return
    if not allow_other:
        raise _refusal(stored, differences, "--allow-other-split of inference_instruct.py evaluates and counts them.")
    place = (
        asked if is_same_corpus else replace(trained, source=trained.source if trained.source in BUILT_IN else "local")
    )
    trained = replace(trained, data_dir=place.data_dir, source=place.source)
    try:
        seen = set(_records(trained, config.dataset.tokenizer_path, "train"))
    except ValueError as error:
        print(f"how many evaluated records were trained on cannot be counted: {error}", file=sys.stderr)
        return
    evaluated = _records(asked, config.dataset.tokenizer_path, split)
    overlap = sum(record in seen for record in evaluated)
    print(
        f"another split ({'; '.join(differences)}): {overlap} of {len(evaluated)} evaluated records are among the "
        f"{len(seen)} that {stored.path} was trained on",
        file=sys.stderr,
    )


def check_validation_split(stored: Checkpoint, config: PretrainConfig) -> None:
    """Refuse to evaluate puzzles held out of the training set unless the checkpoint's own training held them out."""
    share, trained = config.eval.validation_split, stored.config()
    if not share or trained is None:
        return
    held = trained.get("eval")
    rule = {"eval.validation_split": held.get("validation_split", 0.0) if isinstance(held, dict) else 0.0}
    rule["seed"] = trained.get("seed", 0)
    asked = {"eval.validation_split": share, "seed": config.seed}
    differences = [f"{name}={asked[name]} instead of {rule[name]}" for name in rule if asked[name] != rule[name]]
    if differences:
        raise _refusal(stored, differences, "Or set eval.validation_split=0.")


def _refusal(stored: Checkpoint, differences: list[str], otherwise: str) -> ValueError:
    return ValueError(
        f"{stored.path} was trained beside another split: found {'; '.join(differences)}. Records that it was trained "
        f"on would count as held out. Give the values of the training. {otherwise}"
    )


def _trained_corpus(data: dict[str, Any]) -> SlimOrcaConfig:
    trained, problems = parse(TextDataConfig, data, prefix="dataset.")
    if trained is None:
        raise ConfigError(problems)
    return corpus_config(trained)


def _known_digest(trained: SlimOrcaConfig, asked: SlimOrcaConfig) -> str | None:
    """For a checkpoint that recorded none: that of the corpus at the place where it was trained, if it is there."""
    is_built_in = trained.source in BUILT_IN
    if not is_built_in and trained.folder.absolute() == asked.folder.absolute():
        return corpus_digest(asked)
    try:
        return corpus_digest(replace(trained, source=trained.source if is_built_in else "local"))
    except ValueError:
        return None


def _records(config: SlimOrcaConfig, tokenizer_path: str | None, split: str) -> list[bytes]:
    conversations = read_texts(config, tokenizer_path, [split])
    if config.source == "composition":  # whose trained conversations ask several questions
        conversations = (texts[at : at + 2] for texts in conversations for at in range(0, len(texts), 2))
    return [hashlib.sha256("\0".join(messages).encode("utf-8", "surrogatepass")).digest() for messages in conversations]
