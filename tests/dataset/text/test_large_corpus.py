"""A large corpus takes as much memory as its tokens do and one speed from start to end, and is on a machine once."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dataset.made_up_orca import write_json_lines, write_parquet, write_tokenizer
from tests.ranks import start_two_ranks
from tests.tiny import ROOT, end, start_python

RECORDS = 200_000
PROGRAM = "tests/dataset/text/loading.py"
BYTES_OF_A_TOKEN, OF_READING = 2.3, 200e6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("corpora")
    write_tokenizer(folder / "tokenizer.model")
    write_json_lines(folder / "tiny.jsonl", 100)
    write_json_lines(folder / "large.jsonl", RECORDS)
    write_parquet(folder / "large.parquet", RECORDS)
    yield folder
    shutil.rmtree(folder)  # pytest would keep that of the last three times


@pytest.fixture(scope="module")
def alone(corpora: Path) -> dict[str, dict[str, Any]]:
    """What one process says of each corpus."""
    found = {}
    for name in ("tiny.jsonl", "large.jsonl", "large.parquet"):
        ended = end(start_python([ROOT / PROGRAM, *words(corpora, name)], ROOT, is_new=True, PYTHONPATH=str(ROOT)), 900)
        assert ended.code == 0, ended.err
        found[name] = json.loads(ended.out)
    return found


def words(corpora: Path, name: str) -> list[str]:
    return [str(corpora / name), str(corpora / "tokenizer.model")]


def sizes_of_two_ranks(corpora: Path, name: str) -> list[int]:
    ranks = start_two_ranks(PROGRAM, words(corpora, name), ROOT, is_new=True, PYTHONPATH=str(ROOT))
    ended = [end(rank, 900) for rank in ranks]
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    return [json.loads(rank.out)["size"] for rank in ended]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_is_that_of_the_tokens(alone: dict[str, dict[str, Any]], kind: str) -> None:
    found = alone[f"large.{kind}"]
    print(f"{sum(found['tokens']):,} tokens, {found['growth'] / 1e6:.0f} MB at the peak")
    assert found["growth"] <= BYTES_OF_A_TOKEN * sum(found["tokens"]) + OF_READING


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_second_half_is_read_as_fast_as_the_first(alone: dict[str, dict[str, Any]], kind: str) -> None:
    parts = alone[f"large.{kind}"]["parts"]
    first, second = rate(parts[:6]), rate(parts[5:])
    print(f"{first:,.0f}, then {second:,.0f} records for a second of a processor")
    assert second == pytest.approx(first, rel=0.25)


def test_parquet_is_as_fast_as_json_lines_and_says_the_same(alone: dict[str, dict[str, Any]]) -> None:
    lines, rows = alone["large.jsonl"], alone["large.parquet"]
    assert rows["tokens"] == lines["tokens"] and min(lines["tokens"]) > 0
    assert rate(rows["parts"]) == pytest.approx(rate(lines["parts"]), rel=0.25)


def rate(parts: list[list[float]]) -> float:
    """Records for a second of a processor."""
    (first, began), (last, ended) = parts[0], parts[-1]
    return (last - first) / (ended - began)


def test_two_ranks_hold_the_corpus_once(alone: dict[str, dict[str, Any]], corpora: Path) -> None:
    one = alone["large.jsonl"]["size"] - alone["tiny.jsonl"]["size"]
    large, tiny = (sizes_of_two_ranks(corpora, name) for name in ("large.jsonl", "tiny.jsonl"))
    two = sum(large) - sum(tiny)
    print(f"{one / 1e6:.0f} MB in one process, {two / 1e6:.0f} MB in two ranks")
    assert two <= 1.15 * one
