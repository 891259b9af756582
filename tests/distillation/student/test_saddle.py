"""The controller of plateaus, on losses made by hand, and the learning rates that come of it."""

import json
import math

import pytest

from engine.train.optimizers import OptimizerSet
from engine.train.schedule import RestartSchedule
from src.distillation.config import SaddleOptions
from src.distillation.student.saddle import LADDER, MOST_RISE, Event, PlateauController

WINDOW, REST = 20, 30
SETTINGS = {"patience_steps": WINDOW, "cooldown_steps": REST, "interventions_enabled": True}


def controller(**changes) -> PlateauController:
    return PlateauController(SaddleOptions.model_validate(SETTINGS | changes))


def watched(steerer: PlateauController, losses, first: int = 1, norm: float = 2.0) -> list[Event]:
    return [event for step, loss in enumerate(losses, start=first) for event in steerer.observe(step, loss, norm)]


def summary(events: list[Event]) -> list[tuple[int, str, float]]:
    return [(event.step, event.kind, event.factor) for event in events]


def test_a_flat_loss_is_answered_at_steps_that_can_be_told_beforehand():
    """The first window is full at step 21; then each intervention, its rest, and the next stronger one."""
    expected, step = [], WINDOW + 1
    for factor, duration in (*LADDER, LADDER[-1]):
        expected += [(step, "raised", factor), (step + duration, "ended", 1.0)]
        step += duration + REST
    assert summary(watched(controller(), [5.0] * (step - 1))) == expected


def test_without_interventions_plateaus_are_told_of_and_nothing_is_done():
    steerer = controller(interventions_enabled=False)
    events = watched(steerer, [5.0] * 100)
    assert summary(events) == [(step, "plateau", 1.0) for step in (21, 51, 81)]
    assert all(steerer.factor(step) == 1.0 for step in range(200))
    assert "step 21" in str(events[0]) and "5.0000" in str(events[0])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_nothing_happens_while_the_loss_falls(noise):
    losses = [5 * 0.998**step + noise * (-1) ** step for step in range(600)]
    assert not watched(controller(), losses)


@pytest.mark.parametrize(
    ("changes", "norms", "loss"),
    [
        ({"enabled": False}, [2.0] * 90, 5.0),
        ({}, [0.1 * 1.1**step for step in range(90)], 5.0),  # 2.6 times the median of its window
        ({}, [2.0] * 90, 0.0),  # nothing is left to improve
        ({}, [math.nan] * 90, 5.0),  # skipped steps say nothing
    ],
)
def test_what_is_no_plateau_is_left_alone(changes, norms, loss):
    steerer = controller(**changes)
    assert not [event for step, norm in enumerate(norms, 1) for event in steerer.observe(step, loss, norm)]


def test_a_rising_loss_is_no_plateau():
    losses = [5 * 1.01**step for step in range(100)]
    assert not watched(controller(), losses)


def test_a_raised_rate_that_harms_is_taken_back_and_the_next_is_the_mildest():
    steerer = controller()
    assert summary(watched(steerer, [5.0] * 101))[-1] == (101, "raised", 2.0)
    (event,) = watched(steerer, [9.0] * 3, first=102)
    assert event.kind == "rolled_back" and event.loss > 5.0 * (1 + MOST_RISE)
    assert steerer.factor(event.step) == 1.0
    after = watched(steerer, [event.loss] * 400, first=105)
    assert after[0].factor == LADDER[0][0] and after[0].step >= event.step + REST


def test_after_an_intervention_that_helped_the_mildest_comes_first():
    steerer = controller()
    watched(steerer, [5.0] * 101)
    events = watched(steerer, [4.0] * 300, first=102)
    assert [(event.kind, event.factor) for event in events[:2]] == [("ended", 1.0), ("raised", LADDER[0][0])]


class Weightless:
    """Keeps the rates that it is given."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.0}, {"lr": 0.0}]
        self.rates: list[float] = []

    def step(self) -> None:
        first, second = (group["lr"] for group in self.param_groups)
        assert first == second
        self.rates.append(first)


def schedule(steerer: PlateauController | None) -> RestartSchedule:
    return RestartSchedule(
        warmup_steps=40,
        plateau_steps=10,
        cosine_steps=50,
        cosine_growth=2,
        min_lr=1e-4,
        factor=steerer and steerer.factor,
    )


def test_rates_are_the_schedule_times_the_factor_for_exactly_its_steps():
    """Through warm-up, plateau and two cosines, none of which takes back what the controller does."""
    steerer = controller()
    steered = schedule(steerer)
    optimizer = Weightless()
    optimizers = OptimizerSet(optimizer, 1e-3, None, 0.0, steered)  # type: ignore[arg-type]
    for step in range(1, 250):
        steerer.observe(step, 5.0, 2.0)
        optimizers.step(step)
    factors = {}
    begin = WINDOW + 1
    for factor, duration in LADDER:
        factors |= {step: factor for step in range(begin, begin + duration)}
        begin += duration + REST
    expected = [schedule(None).at(step, 1e-3) * factors.get(step, 1.0) for step in range(1, 250)]
    assert optimizer.rates == expected
    assert sum(step in factors for step in range(1, 250)) == 50 + 50 + 69  # the third ends after the last step


def test_a_controller_that_is_stopped_within_an_intervention_goes_on_as_if_it_was_not():
    losses = [5.0] * 60 + [5.3] * 200
    whole = controller()
    events, factors = watched(whole, losses), []
    for cut in (10, 30, 60, 85):
        first, second = controller(), controller()
        told = watched(first, losses[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert told + watched(second, losses[cut:], first=cut + 1) == events
        factors.append(first.factor(cut))
        assert second.state_dict() == whole.state_dict()
    assert factors[:3] == [1.0, 1.5, 1.5], "some are cut in the middle of an intervention"


def test_the_block_of_a_config_says_what_the_controller_does():
    steerer = PlateauController(SaddleOptions.model_validate({"patience_steps": 7, "grad_norm_threshold": 0.1}))
    assert steerer.settings.patience_steps == 7 and steerer.settings.grad_norm_threshold == 0.1
    assert not steerer.settings.interventions_enabled
    with pytest.raises(ValueError, match=r"(?s)patience_steps.*cooldown_steps"):
        SaddleOptions.model_validate({"patience_steps": 0, "cooldown_steps": -1})
