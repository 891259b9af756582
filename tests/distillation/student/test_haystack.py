"""Needle in a haystack: who remembers scores 1, who does not scores 0, and prompts are as long as they say."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.act import ActModel
from models.retnet.model import RetNet, RetNetCore, RetNetState
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.student.haystack import KEY_TOKENS, VALUE_TOKENS, NeedleEvaluator, hidden_needle
from tests.models.small import make
from tests.models.small_retnet import make_model

VOCAB = 64
SPECIAL = (0, 1, 2)


class Rememberer(RetNetCore):
    """Keeps every token in its state and says what followed when it last read the same key."""

    def empty_state(self, rows: int) -> RetNetState:
        return RetNetState((torch.zeros(rows, 0, dtype=torch.long),), torch.zeros(rows, dtype=torch.long))

    def read(self, ids: Tensor, new_lengths: Any, state: RetNetState) -> tuple[Tensor, RetNetState]:
        seen = torch.cat([state.layers[0], ids], dim=1)
        answer = torch.zeros(*ids.shape, VOCAB)
        for row, tokens in enumerate(seen.tolist()):
            for place in range(ids.shape[1]):
                upto = tokens[: len(tokens) - ids.shape[1] + place + 1]
                answer[row, place, self.next_token(upto)] = 10.0
        return answer, RetNetState((seen,), state.lengths + torch.tensor(new_lengths))

    def next_token(self, tokens: list[int]) -> int:
        key = tokens[-KEY_TOKENS:]
        places = [at for at in range(len(tokens) - KEY_TOKENS) if tokens[at : at + KEY_TOKENS] == key]
        return tokens[places[-1] + KEY_TOKENS] if places else 0


class RemembersOneToken(Rememberer):
    """Gets the first token of the answer right and no other."""

    def next_token(self, tokens: list[int]) -> int:
        found = super().next_token(tokens)
        return found if len(tokens) == 32 else 0


class Oracle(RetNet):
    core_class = Rememberer


class HalfOracle(RetNet):
    core_class = RemembersOneToken


def oracle(model_class: type[RetNet]) -> RetNet:
    sizes = {"seq_len": 32, "vocab_size": VOCAB, "hidden_size": VOCAB, "num_heads": 2, "expansion": 1, "H_layers": 1}
    model = model_class({**sizes, "forward_dtype": "float32", "tie_embeddings": False})
    with torch.no_grad():
        model.inner.lm_head.weight.copy_(torch.eye(VOCAB))
    return model


def needle_scores(
    model: ActModel, lengths: list[int], samples: int = 4, vocab_size: int = VOCAB, **options: Any
) -> dict[str, float]:
    tokenizer = TokenizerFacts(name="", sha256="", vocab_size=vocab_size, bos_id=1, eos_id=2, pad_id=0)
    return NeedleEvaluator(model, tokenizer, lengths, samples, seed=0, **options).result(None, 0, 1, None)


def test_who_remembers_finds_every_needle() -> None:
    scores = needle_scores(oracle(Oracle), lengths=[12, 32, 100], depths=[0.0, 0.5, 1.0], samples=3)
    assert scores["mean"] == 1.0
    assert set(scores) == {f"{n}/{d}" for n in (12, 32, 100) for d in ("0", "0.5", "1")} | {"mean"}


def test_whole_value_counts() -> None:
    assert needle_scores(oracle(HalfOracle), lengths=[32], depths=[0.5], samples=3)["mean"] == 0.0


def test_who_has_learnt_nothing_finds_none() -> None:
    model = make_model(vocab_size=VOCAB)
    assert needle_scores(model, lengths=[16, 24], samples=4)["mean"] <= 0.05


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bos_id", [1, None])
def test_prompt_has_exactly_its_length_and_one_answer(depth: float, bos_id: int | None) -> None:
    ordinary = np.arange(3, VOCAB)
    for seed in range(20):
        needle = hidden_needle(np.random.default_rng(seed), ordinary, bos_id, 40, depth)
        key = needle.prompt[-KEY_TOKENS:]
        assert len(needle.prompt) == 40
        assert (needle.prompt[0] == bos_id) == (bos_id is not None)
        assert not set(SPECIAL) & set(needle.prompt[1:])
        places = [at for at in range(40 - KEY_TOKENS) if needle.prompt[at : at + KEY_TOKENS] == key]
        assert len(places) == 1
        start = places[0] + KEY_TOKENS
        assert needle.prompt[start : start + VALUE_TOKENS] == needle.value
        assert all(needle.prompt.count(token) == 2 for token in key)


def test_depth_is_where_the_needle_lies() -> None:
    ordinary = np.arange(3, VOCAB)
    places = []
    for depth in (0.0, 0.5, 1.0):
        needle = hidden_needle(np.random.default_rng(0), ordinary, 1, 111, depth)
        places.append(needle.prompt.index(needle.value[0]) - KEY_TOKENS)
    assert places == [1, 51, 101]


def test_same_seed_gives_the_same_scores() -> None:
    model = make_model(vocab_size=VOCAB)
    first = needle_scores(model, lengths=[20], samples=2)
    assert needle_scores(model, lengths=[20], samples=2) == first
    assert model.training  # as it was found


def test_too_short_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens"):
        needle_scores(make_model(vocab_size=VOCAB), lengths=[11, 40])


def test_too_few_ordinary_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="28 ordinary tokens.*27"):
        needle_scores(make_model(), vocab_size=30, lengths=[20])


def test_attention_model_is_asked_the_same_way_within_its_length() -> None:
    options = {"vocab_size": VOCAB, "seq_len": 24, "causal": True, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
    model = make("trm", **options)
    scores = needle_scores(model, lengths=[24], depths=[0.5], samples=1)  # with room for an answer of 4
    assert scores == {"20/0.5": 0.0, "mean": 0.0}
