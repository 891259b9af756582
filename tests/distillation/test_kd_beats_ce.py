"""Learning from a teacher against learning from the same few texts, by the distance from the teacher on other texts."""

import pytest
import torch

from tests.distillation.kd_samples import VOCAB, taught

STEPS = 200
PARTS = ("embed", "mlp", "norms", "qkvo")


@pytest.fixture(autouse=True)
def one_thread():
    """More are slower at this size, and the numbers below stay the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_teacher_is_worth_more_than_texts():
    """At once: a teacher of few steps, a third of the students' steps, one seed."""
    few = {"steps": 70, "teacher_steps": 130}
    text, teacher = taught(k=None, **few), taught(k=8, **few)
    assert teacher["kl"] < 0.8 * text["kl"]
    assert teacher["agreement"] > text["agreement"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_held_out_texts_are_better_understood_with_a_teacher(seed):
    text, teacher = taught(STEPS, seed=seed, k=None), taught(STEPS, seed=seed)
    assert teacher["kl"] < 0.6 * text["kl"]
    assert teacher["ce"] < text["ce"] and teacher["agreement"] > text["agreement"]


@pytest.mark.slow
def test_temperature_does_not_cost_much():
    assert taught(STEPS, temperature=2.0)["kl"] < 1.2 * taught(STEPS)["kl"]


@pytest.mark.slow
def test_of_four_ids_the_rest_matters():
    bucket, renorm = (taught(STEPS, k=4, tail=tail)["kl"] for tail in ("bucket", "renorm"))
    assert bucket < renorm


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampled", "dense"])
def test_other_kinds_of_signals_teach_as_well(kind):
    assert taught(STEPS, kind=kind, k=VOCAB if kind == "dense" else 16)["kl"] < 1.25 * taught(STEPS)["kl"]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_teachers_weights_save_most_of_the_steps(tied):
    start, random_start = taught(0, parts=PARTS, tied=tied), taught(0, tied=tied)
    assert start["kl"] < random_start["kl"]
    assert taught(100, parts=PARTS, tied=tied)["kl"] < 0.6 * taught(100, tied=tied)["kl"]


@pytest.mark.slow
def test_every_optimizer_learns_from_a_teacher():
    for optimizer in ("adam_atan2", "muon_hybrid"):
        assert taught(100, optimizer=optimizer)["kl"] < 0.5 * taught(0)["kl"]
