"""The engine under the rules of MPS: no 64-bit float and no complex number reaches the device, and the numbers agree."""

from typing import Any

import pytest

from tests.gpu.cases import CASES
from tests.gpu.driven import check_equal, results

KINDS = [name for name in CASES if not name.startswith("measured: ")]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return results("mps", "--skip", "measured")


@pytest.mark.parametrize("name", KINDS)
def test_mps_computes_what_the_cpu_does(found: dict[str, dict[str, Any]], name: str) -> None:
    check_equal(found, name)
