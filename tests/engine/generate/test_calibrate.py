"""Thresholds for leaving early keep the loss on conversations that they were not fitted on."""

import numpy as np
import pytest
import torch

from dataset.text.token_store import DocumentStoreBuilder, EncodedDocuments
from engine.build.text import HeldOut
from engine.generate import calibrate
from engine.generate.exits import MIN_STEPS
from engine.generate.options import ExitRule
from models.losses.text import Supervision
from tests.engine.text_samples import BASE, VOCAB, make_head

STEPS, RISE = 5, 0.02


def copying(count: int, seed: int) -> HeldOut:
    """Three tokens, a mark, and the same three tokens as the answer."""
    rng = np.random.default_rng(seed)
    builder = DocumentStoreBuilder(VOCAB)
    for _ in range(count):
        word = rng.integers(BASE, VOCAB, size=3)
        ids = np.concatenate([word, [1], word]).astype(np.int32)
        builder.extend(EncodedDocuments(ids, np.arange(len(ids)) >= 4, np.array([len(ids)])))
    return HeldOut(builder.build(), pad_id=0)


@pytest.fixture(scope="module")
def trained():
    head = make_head("trm", halt_max_steps=STEPS, hidden_size=32)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    texts = copying(2000, seed=1)
    for step in range(60):
        batch = texts.batch(range(32 * step, 32 * step + 32))
        at = Supervision.of(batch)
        optimizer.zero_grad()
        head.train_on(batch, at, at.weights("token", torch.tensor(float(len(at.places)))), STEPS)
        optimizer.step()
    return head.model


def test_the_loss_on_other_conversations_rises_no_more_than_asked(trained):
    report = calibrate.calibrate(
        trained, copying(400, seed=2), [range(400)], max_rise=RISE, conversations=100, num_steps=STEPS
    )
    fresh = copying(100, seed=3)
    everything = range(100)
    full, _ = calibrate.decoded(trained, fresh, everything, ExitRule(), STEPS)
    for kind, found in report.items():
        loss, depth = calibrate.decoded(trained, fresh, everything, ExitRule(kind, found["threshold"]), STEPS)
        assert loss - full <= RISE and found["loss_increase"] <= RISE, kind
        assert depth == pytest.approx(found["mean_depth"], abs=0.5)
    assert min(found["mean_depth"] for found in report.values()) < STEPS - 0.5  # and something is saved


def test_nothing_leaves_where_no_rise_is_allowed_that_leaving_would_cost(trained):
    texts = copying(40, seed=4)
    trace = calibrate.traced(trained, texts, range(40), STEPS)
    worse = calibrate.Trace(trace.losses + 10 * torch.arange(STEPS, 0, -1)[:, None], trace.evidence, trace.document)
    for kind in ("kl", "margin", "head"):
        assert (worse.depths(calibrate.fitted(worse, kind, 0.0)) == STEPS).all()
        assert (worse.depths(calibrate.fitted(worse, kind, 1e9)) == MIN_STEPS[kind]).all()


def test_a_trace_is_what_decoding_at_every_depth_finds(trained):
    texts = copying(20, seed=5)
    trace = calibrate.traced(trained, texts, range(20), STEPS)
    full, depth = calibrate.decoded(trained, texts, range(20), ExitRule(), STEPS)
    assert float(trace.losses[-1].mean()) == pytest.approx(full, abs=1e-4) and depth == STEPS
    assert trace.losses.shape == (STEPS, 60) and len(np.unique(trace.document)) == 20
    assert (trace.evidence["kl"] >= -1e-6).all() and (trace.evidence["head"] <= 1).all()


def test_tokens_of_one_conversation_count_as_one_when_chance_is_weighed():
    rises = np.array([0.1, 0.1, 0.1, 0.1, -0.1, -0.1, -0.1, -0.1])
    alone = calibrate.upper_bound(rises, np.arange(8))
    together = calibrate.upper_bound(rises, np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert together > alone > 0


def test_thresholds_are_fitted_on_every_second_conversation_of_every_set(trained, monkeypatch):
    seen, honest = [], calibrate.traced
    monkeypatch.setattr(calibrate, "traced", lambda *given: seen.append(list(given[2])) or honest(*given))
    sets = [range(0, 3), range(3, 9), range(9, 10)]
    calibrate.calibrate(trained, copying(10, seed=7), sets, max_rise=RISE, conversations=6, num_steps=STEPS + 2)
    assert seen == [[0, 2, 3, 5, 9], [1, 4, 6]]


def test_too_few_conversations_are_refused(trained):
    with pytest.raises(ValueError, match="^1 held-out"):
        calibrate.calibrate(trained, copying(1, seed=6), [range(1)], max_rise=RISE, conversations=10, num_steps=STEPS)
