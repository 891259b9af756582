"""Learning rates: those of the reference, and a schedule that starts again."""

import numpy as np
import pytest

from engine.train.schedule import DecaySchedule, RestartSchedule
from tests.models.parity import description

RESTARTS = RestartSchedule(warmup_steps=40, plateau_steps=10, cosine_steps=50, cosine_growth=2, min_lr=1e-4)


def test_learning_rates_equal_the_reference():
    for s in description("lr.json")["schedules"]:
        schedule = DecaySchedule(s["num_warmup_steps"], s["num_training_steps"], s["min_ratio"], s["num_cycles"])
        ours = [schedule.at(k, s["base_lr"]) for k in s["steps"]]
        np.testing.assert_allclose(ours, s["lr"], rtol=1e-12, atol=1e-18)


def test_a_line_falls_evenly_from_the_warm_up_to_its_end():
    schedule = DecaySchedule(10, 110, 0.2, is_linear=True)
    assert [schedule.at(step, 1.0) for step in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.6, 0.2])


def test_the_schedule_warms_up_stays_falls_and_starts_again():
    rates = [RESTARTS.at(step, 1e-3) for step in range(1, 401)]
    assert rates[:3] == pytest.approx([1e-3 / 40, 2e-3 / 40, 3e-3 / 40])
    assert rates[39:50] == [1e-3] * 11
    assert rates[74] == pytest.approx((1e-3 + 1e-4) / 2)  # the middle of the first cosine
    assert rates[98] < 1.1e-4 and rates[99] == pytest.approx(1e-3)  # its end, and the next one's beginning
    assert rates[149] == pytest.approx((1e-3 + 1e-4) / 2)  # twice as long
    assert rates[198] < 1.1e-4 and rates[199] == pytest.approx(1e-3)
    assert min(rates[39:]) >= 1e-4
    even = RestartSchedule(warmup_steps=0, plateau_steps=0, cosine_steps=10, cosine_growth=1, min_lr=0.0)
    assert [even.at(step, 1.0) for step in (5, 15, 10**9 + 5)] == pytest.approx([0.5] * 3)
