"""The cases on the GPU of this machine, plain and compiled, beside the CPU; for whoever has one."""

import pytest
import torch

from tests.gpu.cases import CASES
from tests.gpu.driven import Results, check_equal, results

# The GPU adds up in another order, and an optimizer that divides by the size of small gradients enlarges what that does.
MARGIN = 10.0
COMPILED = ["text: trm_text", "text: evaluation", "puzzles: trm", "decoding: "]

SECONDS = 500.0  # for what is compiled, most of it spent in the compiler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(len(COMPILED) * SECONDS),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def plain() -> Results:
    return results("cuda", "--real", "--skip", "measured")["cuda"]


@pytest.fixture(scope="module")
def compiled() -> Results:
    found = [results("cuda", "--real", "--compile", "--only", names, seconds=SECONDS)["cuda"] for names in COMPILED]
    return {name: result for results in found for name, result in results.items()}


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("measured: ")])
def test_the_gpu_computes_what_the_cpu_does(plain: Results, name: str) -> None:
    check_equal(plain, name, MARGIN)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(tuple(COMPILED))])
def test_compiled_it_computes_what_the_cpu_does_uncompiled(compiled: Results, name: str) -> None:
    check_equal(compiled, name, MARGIN)
