"""What every test stands on: one thread, fixed seeds, and GPU tests that skip themselves."""

import os

# Before torch is imported; programs that a test starts inherit it, and two test workers share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
for name in ("WANDB_API_KEY", "WANDB_MODE"):  # or every run of a test would be sent there
    os.environ.pop(name, None)

# The same examples on every run, and no deadline: a shared machine may pause for longer than any.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
