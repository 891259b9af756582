"""The two entry points that download: what they write, how they resume, how each source fails alone."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dataset.files.download
import dataset.files.json_stream
import src.distillation.corpus.download
from dataset.files.json_stream import read_values
from src.distillation.corpus.download import download, main_baseline, main_curriculum
from src.distillation.corpus.manifest import read_note
from src.distillation.corpus.plans import BASELINE, CATEGORIES, CURRICULUM, HubSource
from tests.dataset.instruct_samples import FakeHub, serve_hub
from tests.distillation.hub_samples import RepositoriesHandler, baseline_files, json_lines

ROOT = Path(__file__).parents[2]
METAMATH, CODE, APPS, MBPP = BASELINE
HUB_FILES = ("math_reasoning/metamath", "code/code_search_net", "code/apps", "code/mbpp")


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FakeHub]]:
    found = {repo: FakeHub(files=files) for repo, files in baseline_files().items()}
    with serve_hub(monkeypatch, type("Handler", (RepositoriesHandler,), {"hubs": found})):
        yield found


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run(door: Callable[..., None], data_dir: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as left:
        door(data_dir, list(flags))
    assert isinstance(left.value.code, int)
    return left.value.code


def short(source: HubSource, rows: int) -> HubSource:
    return dataclasses.replace(source, rows=rows)


# --- what is written


def test_the_first_corpus_is_downloaded_and_written_as_rows(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main_baseline, tmp_path) == 0
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {f"{name}.jsonl{suffix}" for name in HUB_FILES for suffix in ("", ".source.json")}
    assert {len(rows_of(tmp_path / f"{name}.jsonl")) for name in HUB_FILES} == {30, 8, 3}
    first = rows_of(tmp_path / "math_reasoning/metamath.jsonl")[1]
    assert first == {
        "id": "metamath-0000001", "source": "metamath", "category": "math_reasoning",
        "prompt": "1 + 1?", "response": "é 2",
    }  # fmt: skip
    functions = [row["text"] for row in rows_of(tmp_path / "code/code_search_net.jsonl")]
    assert functions == [f"def f{i}():\n    return {i}\n" for i in range(30)]
    assert [row["response"] for row in rows_of(tmp_path / "code/apps.jsonl")] == ["print(1)", "print(2)"] * 4
    assert rows_of(tmp_path / "code/mbpp.jsonl")[2]["prompt"] == "Task 2\n\nassert 1\nassert 2"
    note = read_note(tmp_path / "code/mbpp.jsonl")
    assert note is not None and (note.license, note.rows, note.is_whole) == ("cc-by-4.0", 3, True)
    out = capsys.readouterr().out
    assert f"{tmp_path / 'code/mbpp.jsonl'}: 3 rows, licence cc-by-4.0" in out


def test_only_as_many_rows_and_bytes_as_the_plan_wants(
    hubs: dict[str, FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset.files.download, "HEAD_STEP_BYTES", 500)
    monkeypatch.setattr(dataset.files.json_stream, "HEAD_BYTES", 100)
    assert download([short(METAMATH, 5)], tmp_path) == 0
    assert len(rows_of(tmp_path / "math_reasoning/metamath.jsonl")) == 5
    note = read_note(tmp_path / "math_reasoning/metamath.jsonl")
    assert note is not None and not note.is_whole
    hub = hubs["meta-math/MetaMathQA"]
    assert hub.sent < len(hub.files["MetaMathQA-395K.json"]) / 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_json_list_is_read_however_it_is_cut(size: int) -> None:
    items = [{"a": [1, {"b": "],["}], "é": '"'}, {}, {"日本": "\\"}]
    text = json.dumps(items, ensure_ascii=False, indent=1).encode()
    assert [value for _, value in read_values((text[i : i + size] for i in range(0, len(text), size)), "x")] == items
    with pytest.raises(ValueError, match="^x, byte .* cut off"):
        list(read_values(iter([text[:-3]]), "x"))


# --- resuming


def test_what_is_there_is_not_fetched_again_unless_forced(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [short(METAMATH, 5), MBPP]
    assert download(sources, tmp_path) == 0
    asked = {repo: len(hub.requests) for repo, hub in hubs.items()}
    capsys.readouterr()
    assert download(sources, tmp_path) == 0
    assert {repo: len(hub.requests) for repo, hub in hubs.items()} == asked
    assert "3 rows" in capsys.readouterr().out
    assert download([short(METAMATH, 9), MBPP], tmp_path) == 0  # the first has too few, the second is whole
    assert len(rows_of(tmp_path / "math_reasoning/metamath.jsonl")) == 9
    assert len(hubs["google-research-datasets/mbpp"].requests) == asked["google-research-datasets/mbpp"]
    assert download([MBPP], tmp_path, force=True) == 0
    assert len(hubs["google-research-datasets/mbpp"].requests) > asked["google-research-datasets/mbpp"]


def test_a_file_that_somebody_put_there_stays(hubs: dict[str, FakeHub], tmp_path: Path) -> None:
    own = tmp_path / "code" / "mbpp.jsonl"
    own.parent.mkdir()
    own.write_text('{"text": "mine"}\n')
    assert download([MBPP], tmp_path) == 0
    assert own.read_text() == '{"text": "mine"}\n'
    assert not hubs["google-research-datasets/mbpp"].requests


def test_a_broken_transfer_goes_on_where_it_stopped(hubs: dict[str, FakeHub], tmp_path: Path) -> None:
    hub = hubs["code-search-net/code_search_net"]
    names = ["python/train-00000-of-00002.parquet", "python/train-00001-of-00002.parquet"]
    first, second = (len(hub.files[name]) for name in names)
    hub.fails_after = first + second // 2
    assert download([CODE], tmp_path) == 1
    assert not (tmp_path / "code" / "code_search_net.jsonl").exists()
    hub.fails_after, before = None, hub.sent
    hub.files["python/train-00000-of-00003.parquet"] = hub.files.pop(names[0])  # its owner has changed the repository
    assert download([CODE], tmp_path) == 0
    assert hub.sent - before == second - second // 2
    assert len(rows_of(tmp_path / "code/code_search_net.jsonl")) == 30


def test_ctrl_c_leaves_with_130_and_no_half_file(
    hubs: dict[str, FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(row: Any) -> None:
        if row["prompt"] == "20 + 20?":
            raise KeyboardInterrupt

    monkeypatch.setattr(src.distillation.corpus.download, "check_row", interrupt)
    assert run(main_baseline, tmp_path) == 130
    assert "metamath" in capsys.readouterr().err
    assert not list(tmp_path.glob("[a-z]*/*.jsonl"))


# --- failing


def test_each_source_fails_alone_and_the_exit_code_says_so(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del hubs["meta-math/MetaMathQA"]
    hubs["codeparrot/apps"].files = {"renamed.jsonl": b"{}"}
    hubs["google-research-datasets/mbpp"].files["full/train-00000-of-00001.parquet"] = b"not parquet"
    assert run(main_baseline, tmp_path) == 1
    assert [file.name for file in tmp_path.glob("*/*.jsonl")] == ["code_search_net.jsonl"]
    err = capsys.readouterr().err
    assert "metamath failed" in err and "401" in err
    assert str(tmp_path / "math_reasoning/metamath.jsonl") in err
    assert re.search("apps failed: .*codeparrot/apps .*train.jsonl.*renamed.jsonl", err)
    assert re.search("mbpp failed: .*parquet", err)
    assert "metamath, apps, mbpp" in err


def test_records_that_cannot_be_used_are_left_out_and_counted(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"question": "a", "solutions": '["b"]', "starter_code": "c"}
    bad = [{"solutions": '["b"]'}, {**good, "solutions": "[5]"}, {**good, "solutions": "["}]
    hubs["codeparrot/apps"].files["train.jsonl"] = json_lines([good, *bad, good, good, good])
    assert download([APPS], tmp_path) == 0
    assert [row["prompt"] for row in rows_of(tmp_path / "code/apps.jsonl")] == ["a\n\nc"] * 4
    assert "record 2: KeyError('question')" in capsys.readouterr().err

    shutil.rmtree(tmp_path)
    hubs["codeparrot/apps"].files["train.jsonl"] = json_lines([good, *bad])
    assert download([APPS], tmp_path) == 1
    assert "1 usable rows and 3" in capsys.readouterr().err


def test_a_broken_line_of_a_repository_is_named(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hubs["codeparrot/apps"].files["train.jsonl"] = b'{"question": "a"}\n{"question'
    assert download([APPS], tmp_path) == 1
    assert "codeparrot/apps/train.jsonl, line 2:" in capsys.readouterr().err


# --- the curriculum


def test_dry_run_shows_the_plan_and_asks_nobody(
    hubs: dict[str, FakeHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_curriculum(tmp_path, ["--dry-run"])
    out = capsys.readouterr().out
    for source in CURRICULUM:
        assert source.name in out and source.license in out and source.repo in out
    assert not any(hub.requests for hub in hubs.values()) and not list(tmp_path.iterdir())


def test_a_category_is_downloaded_alone(
    hubs: dict[str, FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(src.distillation.corpus.download, "CURRICULUM", (METAMATH, APPS, MBPP))
    assert run(main_curriculum, tmp_path / "unused", "--category", "code", "--data-dir", str(tmp_path)) == 0
    assert sorted(file.name for file in tmp_path.glob("*/*.jsonl")) == ["apps.jsonl", "mbpp.jsonl"]
    capsys.readouterr()
    main_curriculum(tmp_path, ["--status-only"])
    out = capsys.readouterr().out
    assert "code: 11 of 50,374 rows" in out and "math_reasoning: 0 of 125,000 rows" in out
    assert "missing" in next(line for line in out.splitlines() if "metamath" in line)
    assert "there" in next(line for line in out.splitlines() if "  mbpp" in line)


def test_an_unknown_category_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main_curriculum(Path("x"), ["--category", "poems"])
    err = capsys.readouterr().err
    assert all(category in err for category in CATEGORIES)


@pytest.mark.parametrize("door", ["download_missing_datasets.py", "download_curriculum_datasets.py"])
def test_doors_run_from_inside_their_folder_without_extras(door: str) -> None:
    program = f"""
import runpy, sys
for name in ("pyarrow", "transformers", "tokenizers", "datasets", "zstandard"):
    sys.modules[name] = None
sys.argv = ["{door}", "--help"]
runpy.run_path("{door}", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "data", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT / "data" / "distillation") in done.stdout.replace("\n", "").replace(" ", "")
