"""How many passes a step of text has on devices of different memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.build import passes
from engine.build.passes import passes_of
from tests.models.small import make
from tests.tiny import CPU

GIGABYTE = 10**9
SIZES = {
    **{"hidden_size": 512, "num_heads": 8, "expansion": 4, "L_layers": 2, "H_cycles": 3, "L_cycles": 6},
    **{"seq_len": 512, "vocab_size": 32_000, "causal": True, "norm": "pre", "halt_max_steps": 16},
    **{"recursion": "unrolled", "halt_policy": "sampled", "forward_dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def default_core():
    return make("trm", **SIZES).inner


def config_of(asked="auto", rows=48, accumulation=1):
    return SimpleNamespace(
        global_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        rows=SimpleNamespace(tokens_per_pass=asked),
        loss=SimpleNamespace(chunked=True),
        ema=False,
    )


def on_gpu(monkeypatch, gigabytes):
    """A GPU of that size, of which the driver and the weights have taken some."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round((gigabytes - 0.7) * GIGABYTE), 0))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    return replace(CPU, device=torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("gigabytes", "positions"), [(8, 8_192), (12, 12_288), (16, 12_288), (24, 24_576), (80, 24_576)]
)
def test_a_pass_of_the_default_model_follows_the_memory_of_the_gpu(monkeypatch, default_core, gigabytes, positions):
    found = passes_of(config_of(), on_gpu(monkeypatch, gigabytes), default_core)
    assert 48 * 512 // found.number == positions
    assert f"{gigabytes - 0.7:.1f} GB" in found.reason


def test_a_gpu_of_any_size_gets_passes_of_no_more_than_is_of_use(monkeypatch, default_core):
    assert passes_of(config_of(rows=480), on_gpu(monkeypatch, 80), default_core).number == 10


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_known_memory_a_pass_is_as_it_always_was(default_core, device):
    found = passes_of(config_of(), replace(CPU, device=torch.device(device)), default_core)
    assert found.number == 8 and "3072" in found.reason


def test_a_given_number_is_kept_and_passes_divide_the_rows(monkeypatch, default_core):
    runtime = on_gpu(monkeypatch, 80)
    assert passes_of(config_of(3072), runtime, default_core) == (8, "")
    assert passes_of(config_of(5000), runtime, default_core).number == 6
    assert passes_of(config_of(24_576, accumulation=3), runtime, default_core).number == 3


def test_a_model_that_does_not_fit_gets_one_row_a_pass(monkeypatch, default_core):
    assert passes_of(config_of(), on_gpu(monkeypatch, 1), default_core).number == 48


def test_memory_that_pytorch_keeps_without_a_use_is_free(monkeypatch):
    runtime = on_gpu(monkeypatch, 8.7)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIGABYTE)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIGABYTE)
    assert passes.free_bytes(runtime.device) == 10 * GIGABYTE
