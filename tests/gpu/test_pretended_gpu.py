"""The engine on a pretended CUDA or MPS device: the CPU's numbers, no tensor on the wrong side, no wait that is not known,
and with the rules of MPS no 64-bit float and no complex number."""

import pytest

from tests.gpu.cases import CASES
from tests.gpu.driven import Results, check_equal, results
from tests.gpu.table import too_many

PLANTED = {
    "loss weights on the host": "models/losses/chunked.py",
    "a mask on the host": "models/attention.py",
    "numpy of the device": "src/distillation/teachers/causal_lm.py",
}


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def both() -> dict[str, Results]:
    """In one process, in which the CPU computes every case once."""
    return results("cuda", "mps")


@pytest.fixture
def found(both: dict[str, Results]) -> Results:
    return both["cuda"]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("measured: ")])
def test_the_device_computes_what_the_cpu_does(both: dict[str, Results], name: str, kind: str) -> None:
    check_equal(both[kind], name)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("measured: ")])
def test_no_more_waits_and_launches_than_the_table_says(found: Results, name: str) -> None:
    more = too_many(name, check_equal(found, name))
    assert not more, "\n".join([*more, "if it must be: python -m tests.gpu.drive cuda --only measured --accept"])


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_with_file_and_line(found: Results, name: str) -> None:
    said = found[f"planted: {name}"]["problem"]
    assert f"RefusedError: {PLANTED[name]}:" in said


def test_a_copy_to_the_host_holds_nothing_before_the_host_has_waited(found: Results) -> None:
    assert "[-77.0, -77.0], then [1.0, 1.0]" in found["planted: a copy that is read too early"]["problem"]


def test_an_upload_waits_unless_it_is_asked_not_to_and_comes_from_pinned_memory(
    found: Results,
) -> None:
    assert "3 of 4" in found["planted: uploads"]["problem"]
