"""Needle in a haystack over token ids: how well a student finds again, in a long text, what it has read once.

A prompt has exactly as many tokens as asked for: the mark of a beginning, ordinary tokens drawn at random (the
haystack), among them once a key and the value that follows it (the needle), and at the end the key again. Only a model
that remembers can go on with the value, all of it; whatever the tokens mean plays no part.
"""

import sys
from collections.abc import Iterator, Sequence
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
        self,
        model: ActModel,
        tokenizer: TokenizerFacts,
        lengths: Sequence[int],
        samples: int,
        seed: int,
        depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    ) -> None:
        """Lengths beyond the positions that a model knows, with room for the answer, are cut to those."""
        most = sys.maxsize if isinstance(model, RetNet) else model.config.seq_len - VALUE_TOKENS
        self.model, self.bos_id = model, tokenizer.bos_id
        self.lengths, self.depths = [min(length, most) for length in lengths], depths
        self.samples, self.seed = samples, seed
        fewest = 1 + 2 * KEY_TOKENS + VALUE_TOKENS + 1
        if min(self.lengths) < fewest:
            raise ValueError(f"eval_niah_lengths={self.lengths}: needle and question need {fewest} tokens at least.")
        special = [token for token in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) if token is not None]
        self.ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
        if len(self.ordinary) < FEWEST_ORDINARY:
            found = f"found {len(self.ordinary)} of {tokenizer.vocab_size}"
            raise ValueError(f"A haystack needs {FEWEST_ORDINARY} ordinary tokens, {found}. Set eval_niah=false.")

    def begin_eval(self) -> None:
        """Nothing is kept between evaluations."""

    def update_batch(self, batch: Batch, preds: dict[str, Tensor]) -> None:
        """Rows of the corpus play no part."""

    def result(self, save_path: str | None, rank: int, world_size: int, group: Any) -> dict[str, float]:
        """The share of needles whose whole value the model says, by `<length>/<depth>`, and their `mean`.

        A depth of 0 is the beginning of the haystack, 1 its end, right before the question.
        """
        was_training = self.model.training
        self.model.eval()
        scores: dict[str, float] = {}
        for length in self.lengths:
            for depth in self.depths:
                rng = np.random.default_rng([self.seed, length, round(depth * 1e6)])
                needles = [hidden_needle(rng, self.ordinary, self.bos_id, length, depth) for _ in range(self.samples)]
                said = list(answers(self.model, [needle.prompt for needle in needles]))
                found = [answer == needle.value for answer, needle in zip(said, needles, strict=True)]
                scores[f"{length}/{depth:g}"] = sum(found) / self.samples
        self.model.train(was_training)
        return scores | {"mean": sum(scores.values()) / len(scores)}


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
