"""The corpus that a checked config asks for: read in memory, or once a machine for several ranks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.files.scratch import scratch_folder
from dataset.text.composition import CompositionOptions, make_composition_records
from dataset.text.shared_corpus import described, map_corpus
from dataset.text.slimorca import InstructCorpus, SlimOrcaConfig, load_corpus, read_texts
from engine.config.text import InstructConfig, TextDataConfig
from engine.runtime.machine import MachineRanks


def load_text(
    config: InstructConfig, progress: bool, first_only: bool = False, folder: Path | None = None
) -> InstructCorpus:
    """The corpus, with those that follow it unless only the first of several is wanted."""
    corpus = corpus_config(config.dataset)
    corpus = replace(corpus, later=()) if first_only else corpus
    return load_corpus(corpus, config.dataset.tokenizer_path, progress, folder)


def load_for_ranks(config: InstructConfig, progress: bool, first_only: bool = False) -> InstructCorpus:
    """The same on each of several ranks: one of a machine tokenizes into files that all of them map."""
    with MachineRanks("tokenizing the corpus") as ranks:
        if not ranks.is_leader:
            corpus = map_corpus(ranks.told())
            ranks.meet()
            return corpus
        with scratch_folder() as folder:
            corpus = load_text(config, progress, first_only, folder)
            ranks.tell(described(corpus, folder))
            ranks.meet()  # all have mapped the files
    return corpus


def corpus_texts(config: InstructConfig) -> Iterator[list[str]]:
    """The messages of one record of the corpus after the other, as they stand there."""
    return read_texts(corpus_config(config.dataset), config.dataset.tokenizer_path)


def composition_records(config: InstructConfig) -> dict[str, list[dict[str, Any]]]:
    """The questions of dataset.source=composition by set, as they stand in its records, each with its hops."""
    data = corpus_config(config.dataset)
    return make_composition_records(data.composition, data.seed)


def corpus_config(data: TextDataConfig) -> SlimOrcaConfig:
    """The corpus, or the first of several with those that follow it."""
    options = data.model_dump(exclude={"tokenizer_path", "packing", "tokens_per_pass", "composition", "stages"})
    corpus = SlimOrcaConfig(**options, composition=CompositionOptions(**data.composition.model_dump()))
    if data.stages is None:
        return corpus
    first, *later = (replace(corpus, **stage.model_dump(exclude={"epochs"})) for stage in data.stages)
    place = data.data_dir or first.data_dir  # so that a checkpoint is evaluated where the first corpus lies now
    return replace(first, data_dir=place, later=tuple(replace(stage, test_ratio=0.0) for stage in later))
