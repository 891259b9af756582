"""ARC evaluation: undo the augmentation of every prediction, let the copies of a puzzle vote, score pass@k."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dataset.common import Batch, PuzzleDatasetMetadata
from dataset.files.disk import write_file
from dataset.files.json_file import read_json
from dataset.puzzles.arc_grids import crop, grid_hash, parse_name, to_grid

NO_PREDICTION = [[0]]  # an attempt at a test input that got no prediction while another one of its puzzle did
METRIC_PREFIX = "ARC/"
REMEDY = (
    "The ARC evaluator needs it. Evaluate an ARC data set (python -m dataset.build_arc_dataset), or take ARC out of the "
    "evaluators."
)


@dataclass
class Votes:
    """What predictions for the test inputs said."""

    grids: dict[str, np.ndarray] = field(default_factory=dict)  # hash -> predicted grid, augmentation undone
    # (puzzle, hash of the test input) -> (number of the batch, hash of the prediction, confidence that it is right)
    cast: dict[tuple[str, str], list[tuple[int, str, float]]] = field(default_factory=dict)


class ARC:
    """Votes over the augmented copies of each test puzzle.

    Predictions for one test input are ranked by how many copies made them, then by the mean halting probability, then
    by which came first; pass@k asks whether the right one is among the first k. A puzzle's score is the mean over its
    test inputs, and a puzzle without predictions counts as wrong.

    With `aggregated_voting` the votes of successive evaluations add up: the scores are those of all checkpoints of
    this run evaluated so far, voting together. Without it each evaluation stands alone. An evaluation that did not come
    to its result has no vote later.
    """

    required_outputs = frozenset({"inputs", "puzzle_identifiers", "q_halt_logits", "preds"})

    def __init__(
        self,
        data_path: str | Path,
        eval_metadata: PuzzleDatasetMetadata,
        submission_K: int = 2,
        pass_Ks: Sequence[int] = (1, 2, 5, 10, 100, 1000),
        aggregated_voting: bool = True,
        identifier_offset: int = 0,
    ) -> None:
        """`identifier_offset` is what the reader added to this data set's identifiers where several are mixed."""
        self.blank_identifier_id = eval_metadata.blank_identifier_id
        self.submission_K = submission_K
        self.pass_Ks = tuple(pass_Ks)
        self.aggregated_voting = aggregated_voting
        self.identifier_offset = identifier_offset
        self.names: list[str] = read_json(Path(data_path) / "identifiers.json", list, REMEDY)
        self.test_puzzles: dict[str, Any] = read_json(Path(data_path) / "test_puzzles.json", dict, REMEDY)
        self._former = Votes()  # of all ranks in former evaluations; rank 0 alone needs them
        self._votes = Votes()  # of this rank in this evaluation
        self._former_batches = self._num_batches = 0
        self._state: dict[str, Any] | None = None  # the former votes as they are saved

    def begin_eval(self) -> None:
        self._votes, self._num_batches = Votes(), self._former_batches
        if not self.aggregated_voting:
            self._former = Votes()

    def state_dict(self) -> dict[str, Any]:
        """The votes that later evaluations add to, as tensors; rank 0 has them. Made once an evaluation: it takes seconds."""
        if self._state is None:
            self._state = self._tensors()
        return self._state

    def _tensors(self) -> dict[str, Any]:
        votes = self._former if self.aggregated_voting else Votes()
        number_of = {prediction: number for number, prediction in enumerate(votes.grids)}
        cast = [
            (place, batch, number_of[prediction], confidence)
            for place, those in enumerate(votes.cast.values())
            for batch, prediction, confidence in those
        ]
        cells = [torch.from_numpy(grid.astype(np.uint8).reshape(-1)) for grid in votes.grids.values()]
        return {
            "num_batches": self._former_batches,
            "test_inputs": [list(place) for place in votes.cast],
            "votes": torch.tensor([vote[:3] for vote in cast], dtype=torch.int32).view(-1, 3),
            "confidences": torch.tensor([vote[3] for vote in cast], dtype=torch.float64),
            "shapes": torch.tensor([grid.shape for grid in votes.grids.values()], dtype=torch.uint8).view(-1, 2),
            "cells": torch.cat(cells) if cells else torch.zeros(0, dtype=torch.uint8),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the votes of a saved run count."""
        self._former_batches, self._state = state["num_batches"], None
        shapes = state["shapes"].tolist()
        cells = state["cells"].split([height * width for height, width in shapes])
        grids = [part.numpy().reshape(shape) for part, shape in zip(cells, shapes, strict=True)]
        hashes = [grid_hash(grid) for grid in grids]
        places = [(puzzle, test_input) for puzzle, test_input in state["test_inputs"]]
        votes = Votes(dict(zip(hashes, grids, strict=True)), {place: [] for place in places})
        for (place, batch, number), sure in zip(state["votes"].tolist(), state["confidences"].tolist(), strict=True):
            votes.cast[places[place]].append((batch, hashes[number], sure))
        self._former = votes

    def update_batch(self, batch: Batch, preds: Batch) -> None:
        """Take the predictions of one batch; rows of padding and of other data sets are left out."""
        outputs = {
            key: value.detach().cpu() for key, value in {**batch, **preds}.items() if key in self.required_outputs
        }
        missing = self.required_outputs - set(outputs)
        if missing:
            raise ValueError(f"The ARC evaluator needs {', '.join(sorted(missing))}, which the model did not return.")
        identifiers = outputs["puzzle_identifiers"]
        keep = identifiers != self.blank_identifier_id
        numbers = identifiers[keep].numpy() - self.identifier_offset
        confidences = outputs["q_halt_logits"][keep].to(torch.float64).sigmoid().tolist()
        inputs, predictions = (crop(outputs[key][keep].numpy()) for key in ("inputs", "preds"))
        for number, given, predicted, confidence in zip(numbers, inputs, predictions, confidences, strict=True):
            if not 0 <= number < len(self.names):
                continue
            puzzle, augmentation = parse_name(self.names[number])
            if puzzle not in self.test_puzzles:
                continue
            grid = augmentation.invert(predicted)
            prediction = grid_hash(grid)
            self._votes.grids.setdefault(prediction, grid)
            place = (puzzle, grid_hash(augmentation.invert(given)))
            self._votes.cast.setdefault(place, []).append((self._num_batches, prediction, confidence))
        self._num_batches += 1

    def result(
        self, save_path: str | Path | None, rank: int, world_size: int, group: dist.ProcessGroup | None = None
    ) -> dict[str, float] | None:
        """The scores, on rank 0 only; `save_path` is the folder that gets submission.json."""
        gathered: list[Votes] | None = [self._votes]
        if world_size > 1:
            gathered = [Votes() for _ in range(world_size)] if rank == 0 else None
            dist.gather_object(self._votes, gathered, dst=0, group=group)
        self._votes, self._former_batches, self._state = Votes(), self._num_batches, None
        if gathered is None:
            self._former = Votes()
            return None

        votes = self._former = _merged([self._former, *gathered])
        scores = np.zeros(len(self.pass_Ks))
        submission: dict[str, list[dict[str, list[list[int]]]]] = {}
        for puzzle, content in self.test_puzzles.items():
            rankings = [_ranking(votes, puzzle, pair["input"]) for pair in content["test"]]
            for pair, ranking in zip(content["test"], rankings, strict=True):
                right = grid_hash(to_grid(pair["output"], puzzle))
                scores += [(right in ranking[:k]) / len(rankings) for k in self.pass_Ks]
            submission[puzzle] = [self._attempts(votes, ranking) for ranking in rankings] if any(rankings) else []
        if save_path is not None:
            write_file(Path(save_path) / "submission.json", json.dumps(submission))
        return {
            f"{METRIC_PREFIX}pass@{k}": float(score) / len(self.test_puzzles)
            for k, score in zip(self.pass_Ks, scores, strict=True)
        }

    def _attempts(self, votes: Votes, ranking: list[str]) -> dict[str, list[list[int]]]:
        """The best predictions for one test input; too few are filled up with the best one."""
        chosen = [votes.grids[prediction].tolist() for prediction in ranking[: self.submission_K]] or [NO_PREDICTION]
        chosen += [chosen[0]] * (self.submission_K - len(chosen))
        return {f"attempt_{number}": grid for number, grid in enumerate(chosen, start=1)}


def _merged(gathered: list[Votes]) -> Votes:
    """The votes of all ranks; sorted by batch they are in the order in which one rank alone would have cast them."""
    merged = Votes()
    for votes in gathered:
        merged.grids |= votes.grids
        for place, cast in votes.cast.items():
            merged.cast.setdefault(place, []).extend(cast)
    for cast in merged.cast.values():
        cast.sort(key=lambda vote: vote[0])
    return merged


def _ranking(votes: Votes, puzzle: str, test_input: list[list[int]]) -> list[str]:
    """Hashes of the predictions for one test input, best first."""
    confidences: dict[str, list[float]] = {}
    for _, prediction, confidence in votes.cast.get((puzzle, grid_hash(to_grid(test_input, puzzle))), []):
        confidences.setdefault(prediction, []).append(confidence)
    strength = {prediction: (len(values), sum(values) / len(values)) for prediction, values in confidences.items()}
    return sorted(strength, key=strength.__getitem__, reverse=True)
