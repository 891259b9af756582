"""The engine on a pretended CUDA device: the CPU's numbers, no tensor on the wrong side, no wait that is not known."""

from typing import Any

import pytest

from tests.gpu.cases import CASES
from tests.gpu.driven import check_equal, results
from tests.gpu.table import too_many

PLANTED = {
    "loss weights on the host": "models/losses/chunked.py",
    "a mask on the host": "models/attention.py",
    "numpy of the device": "src/distillation/teachers/causal_lm.py",
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return results("cuda")


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("measured: ")])
def test_the_device_computes_what_the_cpu_does(found: dict[str, dict[str, Any]], name: str) -> None:
    check_equal(found, name)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("measured: ")])
def test_no_more_waits_and_launches_than_the_table_says(found: dict[str, dict[str, Any]], name: str) -> None:
    more = too_many(name, check_equal(found, name))
    assert not more, "\n".join([*more, "if it must be: python -m tests.gpu.drive cuda --only measured --accept"])


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_with_file_and_line(found: dict[str, dict[str, Any]], name: str) -> None:
    said = found[f"planted: {name}"]["problem"]
    assert f"RefusedError: {PLANTED[name]}:" in said


def test_a_copy_to_the_host_holds_nothing_before_the_host_has_waited(found: dict[str, dict[str, Any]]) -> None:
    assert "[-77.0, -77.0], then [1.0, 1.0]" in found["planted: a copy that is read too early"]["problem"]


def test_an_upload_waits_unless_it_is_asked_not_to_and_comes_from_pinned_memory(
    found: dict[str, dict[str, Any]],
) -> None:
    assert "3 of 4" in found["planted: uploads"]["problem"]
