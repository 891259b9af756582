"""The moving average of the weights: its rate, and how much of the start is left in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.ema import WeightAverage
from tests.live_bytes import LiveBytes


def averaged_from_one_to_zero(rate: float, is_warmed_up: bool, updates: int) -> WeightAverage:
    """The average of a weight that was 1 at the start and 0 ever after: the share of the start itself."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(module.weight)
    average = WeightAverage(module, rate, is_warmed_up)
    torch.nn.init.zeros_(module.weight)
    for number in range(1, updates + 1):
        average.update(number)
    return average


@given(rate=st.floats(0, 0.9999), is_warmed_up=st.booleans(), updates=st.integers(1, 50))
def test_share_of_start_is_the_weight_that_the_first_values_have(rate, is_warmed_up, updates):
    average = averaged_from_one_to_zero(rate, is_warmed_up, updates)
    assert average.shadow["weight"].item() == pytest.approx(average.share_of_start(updates), rel=1e-6, abs=1e-12)


def test_a_warmed_up_average_forgets_its_start_and_reaches_its_rate():
    plain, warm = WeightAverage(torch.nn.Linear(1, 1), 0.999), WeightAverage(torch.nn.Linear(1, 1), 0.999, True)
    assert [plain.rate_of(number) for number in (1, 120, 10**5)] == [0.999] * 3
    assert [warm.rate_of(number) for number in (1, 120, 10**5)] == [2 / 11, 121 / 130, 0.999]
    assert plain.share_of_start(120) > 0.88 and warm.share_of_start(120) < 1e-9


def test_an_average_that_begins_late_is_the_weights_until_then():
    module = torch.nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(module, 0.5, start=2)
    for number, value in enumerate((1.0, 2.0, 4.0), start=1):
        torch.nn.init.constant_(module.weight, value)
        average.update(number)
    assert average.shadow["weight"].item() == 3.0  # half of 2, what the weights were when it began, and half of 4
    assert average.share_of_start(3) == 0


def test_a_module_without_trained_weights_has_no_start():
    module = torch.nn.Linear(1, 1).requires_grad_(False)
    assert WeightAverage(module, 0.999).share_of_start(3) == 0


def test_the_average_is_swapped_in_without_a_copy_even_where_evaluation_fails():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    average = WeightAverage(module, 0.5)
    torch.nn.init.zeros_(module[0].weight)
    average.update(1)
    live = {name: p.detach().clone() for name, p in module.named_parameters()}
    averaged = {name: value.clone() for name, value in average.state_dict().items()}
    with LiveBytes() as memory, pytest.raises(KeyError), average.swapped_in():
        assert all(torch.equal(p, averaged[name]) for name, p in module.named_parameters())
        raise KeyError
    assert all(torch.equal(p, live[name]) for name, p in module.named_parameters())
    assert all(torch.equal(value, averaged[name]) for name, value in average.state_dict().items())
    assert memory.most == 0 and "copy_" not in memory.names and "clone" not in memory.names
