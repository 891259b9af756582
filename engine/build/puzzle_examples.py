"""Puzzles of the data set that a model was trained on: drawn at random, by number or by the name of their identifier."""

import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset.common import IGNORE_LABEL_ID
from dataset.puzzles import arc_grids
from dataset.puzzles.format import BLANK_NAME, read_identifiers
from dataset.puzzles.mixing import identifier_offsets
from dataset.puzzles.samples import Sample, Samples
from engine.build.puzzle_checkpoint import PuzzleModel
from engine.build.puzzles import identifier_paths


class Examples:
    """Splits are opened when the first example is wanted; what the data set lacks is a ValueError."""

    def __init__(self, model: PuzzleModel) -> None:
        self.model = model
        self.folder = (model.config.data_paths_test or model.config.data_paths)[0]
        self.opened: dict[str, Samples] = {}
        self.named: dict[str, list[str]] = {}  # by split; copies in disguise are left out
        self.opening = threading.Lock()

    def split(self, name: str) -> Samples:
        with self.opening:
            if name not in self.opened:
                self._open(name)
            return self.opened[name]

    def _open(self, name: str) -> None:
        samples = Samples(self.folder, name)
        trained, here = self.model.metadata, samples.split.metadata
        if (trained.seq_len, trained.vocab_size) != (here.seq_len, here.vocab_size):
            raise ValueError(
                f"{self.folder} holds boards of {here.seq_len} cells with {here.vocab_size} tokens, while the model was "
                f"trained on {trained.seq_len} with {trained.vocab_size}. Put the data set of its training there."
            )
        is_named = (Path(self.folder) / "identifiers.json").is_file()
        self.identifier_names = read_identifiers(self.folder) if is_named else []
        # What the training added to the identifiers of this data set.
        self.offset = identifier_offsets(identifier_paths(self.model.config, [self.folder]))[self.folder]
        names = (self.name_of(identifier) for identifier in samples.identifiers())
        self.named[name] = [found for found in names if found and arc_grids.NAME_SEPARATOR not in found]
        self.opened[name] = samples

    def names(self, split: str) -> list[str]:
        """The puzzles of a split that carry a name."""
        self.split(split)
        return self.named[split]

    def name_of(self, identifier: int) -> str | None:
        name = self.identifier_names[identifier] if identifier < len(self.identifier_names) else BLANK_NAME
        return None if name == BLANK_NAME else name

    def draw(self, split: str, number: int | None, name: str | None) -> tuple[Sample, str | None]:
        """The example, numbered as the model's training did, and the name of its puzzle."""
        samples = self.split(split)
        if number is None:
            if name is None and (names := self.names(split)):
                name = random.choice(names)
            number = random.choice(range(len(samples)) if name is None else self._numbers(samples, split, name))
        elif number >= len(samples):
            raise ValueError(f"number: the split {split} holds {len(samples)} examples, from 0.")
        sample = samples[number]
        found = self.name_of(sample.identifier)
        blank = samples.split.metadata.blank_identifier_id
        identifier = sample.identifier + (self.offset if sample.identifier != blank else 0)
        sample = replace(sample, identifier=identifier)
        return (in_corner(sample) if self.model.game.name == "arc" else sample), found

    def _numbers(self, samples: Samples, split: str, name: str) -> list[int]:
        found = samples.of(self.identifier_names.index(name)) if name in self.identifier_names else []
        if not found:
            raise ValueError(f"The split {split} of {self.folder} holds no puzzle {name[:100]!r}.")
        return found


def in_corner(sample: Sample) -> Sample:
    """ARC: question and answer in the upper left corner, where test examples are and grids are drawn."""
    labels = arc_grids.at_corner(np.where(sample.labels == IGNORE_LABEL_ID, arc_grids.PAD, sample.labels))
    labels = np.where(labels == arc_grids.PAD, IGNORE_LABEL_ID, labels)
    return replace(sample, inputs=arc_grids.at_corner(sample.inputs), labels=labels)
