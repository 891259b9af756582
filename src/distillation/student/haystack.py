"""Needle in a haystack over token ids: how well a student finds again, in a long text, what it has read once.

A prompt has exactly as many tokens as asked for: the mark of a beginning, ordinary tokens drawn at random (the
haystack), among them once a key and the value that follows it (the needle), and at the end the key again. Only a model
that remembers can go on with the value, all of it; whatever the tokens mean plays no part.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dataset.common import Batch
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions
from models.act import ActModel
from models.retnet.model import RetNet
from src.distillation.corpus.manifest import TokenizerFacts

KEY_TOKENS, VALUE_TOKENS = 3, 4
FEWEST_ORDINARY = 4 * (KEY_TOKENS + VALUE_TOKENS)  # so that hay is more than two or three tokens over and over
ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Needle:
    prompt: list[int]
    value: list[int]


class NeedleEvaluator:
    """Scores of an evaluation: asks the student itself, whatever rows are read."""

    required_outputs: set[str] = set()

    def __init__(
        self, model: ActModel, tokenizer: TokenizerFacts, lengths: Sequence[int], samples: int, seed: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        # A model with a table of positions must have room for the answer too.
        most = None if isinstance(model, RetNet) else model.config.seq_len - VALUE_TOKENS
        self.lengths = [length if most is None else min(length, most) for length in lengths]
        self.samples = samples
        self.seed = seed

    def begin_eval(self) -> None:
        """Nothing is kept between evaluations."""

    def update_batch(self, batch: Batch, preds: dict[str, Tensor]) -> None:
        """Rows of the corpus play no part."""

    def result(self, save_path: str | None, rank: int, world_size: int, group: Any) -> dict[str, float]:
        facts = self.tokenizer
        return needle_scores(
            self.model,
            vocab_size=facts.vocab_size,
            bos_id=facts.bos_id,
            special_ids={facts.eos_id, facts.pad_id},
            lengths=self.lengths,
            samples=self.samples,
            seed=self.seed,
        )


def needle_scores(
    model: ActModel,
    *,
    vocab_size: int,
    bos_id: int | None,
    special_ids: Collection[int],
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    samples: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """The share of needles whose whole value the model says, by `<length>/<depth>`, and their `mean`.

    A depth of 0 is the beginning of the haystack, 1 its end, right before the question. `special_ids` are never drawn.
    """
    check_lengths(model, lengths)
    ordinary = np.setdiff1d(np.arange(vocab_size), [*special_ids, *([] if bos_id is None else [bos_id])])
    if len(ordinary) < FEWEST_ORDINARY:
        raise ValueError(
            f"A haystack needs at least {FEWEST_ORDINARY} ordinary tokens, but of {vocab_size} only {len(ordinary)} are."
        )
    if samples < 1 or not depths or not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"samples={samples}, depths={list(depths)}: expected at least 1, and numbers from 0 to 1.")
    was_training = model.training
    model.eval()
    scores: dict[str, float] = {}
    for length in lengths:
        for depth in depths:
            rng = np.random.default_rng([seed, length, round(depth * 1e6)])
            needles = [hidden_needle(rng, ordinary, bos_id, length, depth) for _ in range(samples)]
            said = list(answers(model, [needle.prompt for needle in needles]))
            found = [answer == needle.value for answer, needle in zip(said, needles, strict=True)]
            scores[f"{length}/{depth:g}"] = sum(found) / samples
    model.train(was_training)
    return scores | {"mean": sum(scores.values()) / len(scores)}


def check_lengths(model: ActModel, lengths: Sequence[int]) -> None:
    fewest = 1 + 2 * KEY_TOKENS + VALUE_TOKENS + 1
    if not lengths or min(lengths) < fewest:
        raise ValueError(
            f"lengths={list(lengths)}: needle and question need {fewest} tokens at least. Give greater lengths."
        )
    limit = model.config.seq_len
    if not isinstance(model, RetNet) and max(lengths) + VALUE_TOKENS > limit:
        raise ValueError(
            f"lengths={list(lengths)}: this model reads {limit} positions at most, {VALUE_TOKENS} of which the answer "
            f"takes. Give lengths up to {limit - VALUE_TOKENS}."
        )


def hidden_needle(
    rng: np.random.Generator, ordinary: np.ndarray, bos_id: int | None, length: int, depth: float
) -> Needle:
    """A prompt of `length` tokens. No token of key or value occurs in the hay, so there is one answer."""
    needle = rng.choice(ordinary, KEY_TOKENS + VALUE_TOKENS, replace=False)
    key, value = needle[:KEY_TOKENS].tolist(), needle[KEY_TOKENS:].tolist()
    start = [] if bos_id is None else [bos_id]
    num_hay = length - len(start) - 2 * KEY_TOKENS - VALUE_TOKENS
    hay = rng.choice(np.setdiff1d(ordinary, needle), num_hay).tolist()
    place = round(depth * num_hay)
    return Needle([*start, *hay[:place], *key, *value, *hay[place:], *key], value)


def answers(model: ActModel, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
    """What the model says after each prompt, the likeliest token each time."""
    for first in range(0, len(prompts), ROWS_AT_ONCE):
        some = prompts[first : first + ROWS_AT_ONCE]
        said: list[list[int]] = [[] for _ in some]
        for tokens in Decoding(model, some, DecodeOptions(), max_new_tokens=VALUE_TOKENS):
            for token in tokens:
                said[token.row].append(token.id)
        yield from said
