"""Records come one by one out of arrays and lines, packed or not; broken files are told where they break."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataset.chat.records import check_files, read_records
from dataset.files import json_stream

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
VALUES = [{"a": "é\n\u2028€😀"}, {"b": [1, {"c": '"]},{['}]}, {"d": None}]
WRITERS: dict[str, Callable[[list[Any]], str]] = {
    "array": json.dumps,
    "indented array": lambda values: json.dumps(values, indent=2, ensure_ascii=False),
    "lines": lambda values: "".join(json.dumps(value) + "\n" for value in values),
    "lines without an end": lambda values: "\r\n\n".join(json.dumps(value, ensure_ascii=False) for value in values),
    "array after a byte order mark": lambda values: "\ufeff" + json.dumps(values),
    "lines after a byte order mark": lambda values: "\ufeff" + "\n".join(map(json.dumps, values)),
}


def write(folder: Path, content: str | bytes, name: str = "data.json") -> Path:
    packer = PACKERS.get(Path(name).suffix, PACKERS[""])
    (folder / name).write_bytes(packer(content.encode() if isinstance(content, str) else content))
    return folder / name


def values(*files: Path) -> list[Any]:
    return [record.value for record in read_records(files)]


@pytest.fixture(params=[3, 1 << 20], ids=["tiny blocks", "usual blocks"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("dataset.files.jsonl.BLOCK_BYTES", request.param)
    monkeypatch.setattr(json_stream, "HEAD_BYTES", 2 * request.param)
    return request.param


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_form_gives_its_records(block_bytes: int, tmp_path: Path, writer: str, packer: str) -> None:
    file = write(tmp_path, WRITERS[writer](VALUES), f"data.json{packer}")
    counted: list[int] = []
    assert [record.value for record in read_records([file], counted.append)] == VALUES
    assert sum(counted) == file.stat().st_size


def test_lines_may_be_lists(tmp_path: Path) -> None:
    lists = [[{"role": "user"}], [{"role": "assistant"}]]
    assert values(write(tmp_path, WRITERS["lines"](lists))) == lists
    assert values(write(tmp_path, json.dumps(lists))) == lists


def test_records_are_numbered_over_all_files(tmp_path: Path) -> None:
    files = [write(tmp_path, "[1, 2]", "a.json"), write(tmp_path, "3\n4\n", "b.jsonl")]
    found = list(read_records(files))
    assert [(record.number, record.value) for record in found] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [record.place for record in found[1:3]] == [f"{files[0]}, record 2", f"{files[1]}, line 1"]
    assert [record.file for record in found] == [files[0]] * 2 + [files[1]] * 2


@given(st.lists(st.recursive(st.floats(allow_nan=False) | st.text(), st.lists), min_size=1), st.integers(1, 50))
def test_array_survives_any_cut_of_its_bytes(found: list[Any], size: int) -> None:
    content = json.dumps(found, ensure_ascii=False).encode()
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    elements = json_stream._array_elements("x.json", blocks)
    assert [value for _, value in elements] == found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1}, {"a": oops}]', "byte 17: Expecting value.*'oops}]'"),
        ('[{"é": 1} {"a": 2}]', "byte 11: expected ','"),
        ('[{"a": 1}, {"a": ', "byte 17: Expecting value, the file is cut off"),
        ('[{"a": 1}, {"a": "bc', "Unterminated string.*the file is cut off"),
        ('[{"a": 1},', "byte 10: Expecting value, the file is cut off"),
        ('[{"a": 1}', "byte 9: the file is cut off"),
        ('[{"a": 1}] more', "byte 11: expected the end of the file after the array"),
        ('[{"a": 1}, {"a": "raw\nline"}]', "byte 21: Invalid control character"),
        ("[" * 100_000, "byte 1: maximum recursion depth"),
        ('{"a": 1}\n{"a": oops}\n', r"line 2: Expecting value.*The line begins b'\{\"a\": oops\}'"),
        (
            '{\n  "data": [\n    1\n  ]\n}\n',
            "line 1: Expecting property name.*Expected a JSON array of records, or JSON",
        ),
        ("", "is empty"),
        ("\ufeff \n", "is empty"),
        (b'[{"a": "\xff"}]', "byte 8: invalid start byte, so this is not UTF-8"),
        (b'\xef\xbb\xbf[{"a": "\xff"}]', "byte 11: invalid start byte"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2: .*invalid start byte"),
    ],
)
def test_broken_file_is_told_where(block_bytes: int, tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        values(write(tmp_path, content))
    assert str(tmp_path / "data.json") in str(caught.value)


def test_records_before_the_broken_place_are_given(tmp_path: Path) -> None:
    stream = read_records([write(tmp_path, "[1, 2, oops]")])
    assert [next(stream).value, next(stream).value] == [1, 2]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_packed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, json.dumps(VALUES * 100), f"data.json{suffix}")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cut off"):
        values(file)
    file.write_bytes(b"[1, 2]")
    with pytest.raises(ValueError, match="damaged"):
        values(file)


def test_gzip_members_are_joined(block_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(b"[1, 2") + gzip.compress(b"3, 4]"))
    assert values(tmp_path / "data.json.gz") == [1, 23, 4]


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.json"):
        check_files([tmp_path / "nothing.json"])
    with pytest.raises(ValueError, match="is a folder"):
        check_files([tmp_path])


@pytest.mark.parametrize("content", ['["' + "x" * 5000, '{"data": "' + "x" * 5000])
def test_endless_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr("dataset.files.jsonl.BLOCK_BYTES", 500)
    monkeypatch.setattr(json_stream, "MAX_RECORD_BYTES", 2000)
    with pytest.raises(ValueError, match="MB"):
        values(write(tmp_path, content))


@pytest.mark.parametrize(("writer", "suffix"), [("array", ""), ("lines", ""), ("indented array", ".gz")])
def test_file_is_never_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, suffix: str
) -> None:
    """Three megabytes of text (far less when packed) are read within a few blocks of 64 kilobytes."""
    monkeypatch.setattr("dataset.files.jsonl.BLOCK_BYTES", 1 << 16)
    file = write(tmp_path, WRITERS[writer]([{"text": "word " * 200}] * 3000), f"data.json{suffix}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records([file])) == 3000
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()
