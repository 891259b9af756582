"""Choosing a token: every filter keeps what it says, in the documented order, and each row has its own noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.generate.options import SamplingOptions
from engine.generate.sampling import choose, filtered_logits, marked

logits_of_rows = st.lists(st.floats(-8, 8), min_size=2, max_size=12).map(lambda row: torch.tensor([row]))


def kept(logits, **options):
    """Which tokens survive, with their probabilities."""
    found = filtered_logits(logits, SamplingOptions(**{"temperature": 1.0} | options), None)[0]
    chances = found.softmax(-1)
    return {place: float(chances[place]) for place in range(len(found)) if found[place] > -math.inf}


def noise(count, seed=0):
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


PLAIN = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        # top-k first: of the two that are left, the likelier alone has 0.625
        ({"top_k": 2, "top_p": 0.6}, {0}),
        # temperature before top-p: at 0.5 the likeliest alone has 0.68
        ({"temperature": 0.5, "top_p": 0.6}, {0}),
    ],
)
def test_filters_keep_the_likeliest(options, expected):
    assert set(kept(PLAIN, **options)) == expected


@given(logits=logits_of_rows, p=st.floats(0.05, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    chances = logits[0].double().softmax(-1)
    held = kept(logits, top_p=p)
    mass = float(sum(chances[place] for place in held))
    assert mass >= p - 1e-5
    assert mass - min(float(chances[place]) for place in held) < p + 1e-5
    assert min(float(chances[place]) for place in held) >= max(
        (float(chances[place]) for place in range(len(chances)) if place not in held), default=0.0
    )


def test_the_penalty_makes_what_was_said_less_likely_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    found = filtered_logits(logits, SamplingOptions(repetition_penalty=2.0), marked([[0, 1, 1]], 4))
    assert found.tolist() == [[1.0, -4.0, 1.0, 0.5]]


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]])
    assert choose(logits, SamplingOptions(), None, noise(2)).tolist() == [1, 0]
    assert choose(logits, SamplingOptions(top_k=1, top_p=0.1), None, noise(2)).tolist() == [1, 0]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_temperature_near_zero_takes_the_likeliest_too(filters):
    logits = torch.tensor([[5.0, 10.0, 7.0]])
    for temperature in (1e-300, 1e-38, 1e-4):
        sampling = SamplingOptions(temperature=temperature, **filters)
        assert [int(choose(logits, sampling, None, noise(1, seed))) for seed in range(5)] == [1] * 5


def test_samples_follow_the_probabilities():
    generators = noise(1)
    drawn = [int(choose(PLAIN, SamplingOptions(temperature=1.0), None, generators)) for _ in range(4000)]
    for token, chance in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert drawn.count(token) / 4000 == pytest.approx(chance, abs=0.03)


def test_rows_of_one_seed_draw_alike_and_the_others_of_a_batch_change_nothing():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    sampling = SamplingOptions(temperature=1.0)
    together = choose(logits, sampling, None, noise(3)).tolist()
    assert together == [int(choose(logits[row : row + 1], sampling, None, noise(1))) for row in range(3)]
    twins = choose(logits[:1].expand(3, -1), sampling, None, noise(3)).tolist()
    assert len(set(twins)) == 1
