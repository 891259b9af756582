"""Corpora of other repositories, folders, forms and kinds of files than SlimOrca's, and samples of them."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import dataset.files.download
import dataset.text.slimorca
from dataset.files.jsonl import hash_fraction
from dataset.text.corpus_files import is_sampled
from dataset.text.slimorca import InstructCorpus, SlimOrcaConfig, corpus_digest, load_corpus
from tests.dataset.instruct_samples import FakeHub, make_record

ORCA = "Open-Orca/OpenOrca"
Load = Callable[..., InstructCorpus]
Row = dict[str, Any]


def rows(start: int, stop: int) -> list[Row]:
    """Records as OpenOrca has them."""
    return [
        {
            "id": f"cot.{i}",
            "system_prompt": "",
            "question": f"What is {i} + {i}?",
            "response": f"The answer is {2 * i}.",
        }
        for i in range(start, stop)
    ]


def jsonl(records: list[Row]) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def parquet(records: list[Row], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out, **options)
    return out.getvalue()


def packed(kind: str, records: list[Row]) -> bytes:
    pack = {"parquet": parquet, "jsonl": jsonl}
    pack |= {"jsonl.gz": lambda r: gzip.compress(jsonl(r)), "jsonl.zst": lambda r: zstandard.compress(jsonl(r))}
    return pack[kind](records)


@pytest.fixture
def load(tokenizer_path: Path) -> Load:
    def run(**options: Any) -> InstructCorpus:
        defaults: Row = {"seq_len": 128, "subset_size": None, "test_ratio": 0.25}
        return load_corpus(SlimOrcaConfig(**defaults | options), tokenizer_path, progress=False)

    return run


def answers(corpus: InstructCorpus, split: str = "train") -> list[int]:
    store = getattr(corpus, split)
    documents = (store.document(index) for index in range(len(store)))
    texts = [corpus.tokenizer.decode(ids[is_trained].tolist()) for ids, is_trained in documents]
    return [int(text.removeprefix("The answer is ").removesuffix(".")) // 2 for text in texts]


def split_answers(count: int, test_ratio: float = 0.25) -> tuple[list[int], list[int]]:
    is_test = hash_fraction(0, np.arange(count)) < test_ratio
    return np.flatnonzero(~is_test).tolist(), np.flatnonzero(is_test).tolist()


# --- kinds of files and forms of records


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_every_kind_of_file_holds_the_same_corpus(tmp_path: Path, load: Load, kind: str, as_folder: bool) -> None:
    """Records are numbered over all files of a folder, which are read in the order of their names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    parts = [rows(0, 80)] if not as_folder else [rows(0, 30), rows(30, 80)]
    for number, part in enumerate(parts):
        (folder / f"part-{number}.{kind}").write_bytes(packed(kind, part))
    corpus = load(repo=str(folder if as_folder else folder / f"part-0.{kind}"))
    assert (answers(corpus), answers(corpus, "test")) == split_answers(80)
    assert not corpus.report.total.dropped


@pytest.mark.parametrize(
    "form",
    [
        lambda row: make_record(row["question"], row["response"]),
        lambda row: {"messages": [{"role": "user", "content": row["question"]},
                                  {"role": "assistant", "content": row["response"]}]},
        lambda row: {"instruction": row["question"], "input": "", "output": row["response"]},
        lambda row: {"prompt": row["question"], "answer": row["response"]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_form_of_a_record_is_seen(tmp_path: Path, load: Load, kind: str, form: Callable[[Row], Row]) -> None:
    (tmp_path / f"a.{kind}").write_bytes(packed(kind, rows(0, 20)))
    (tmp_path / f"b.{kind}").write_bytes(packed(kind, [form(row) for row in rows(0, 20)]))
    plain, other = (load(repo=str(tmp_path / f"{name}.{kind}")) for name in "ab")
    assert plain.train.tokens.tolist() == other.train.tokens.tolist() != []


@pytest.mark.parametrize(("kind", "place"), [("parquet", "row 3"), ("jsonl", "line 3")])
def test_an_unknown_form_is_an_error_with_its_place_keys_and_the_known_forms(
    tmp_path: Path, load: Load, kind: str, place: str
) -> None:
    file = tmp_path / f"data.{kind}"
    file.write_bytes(
        packed(kind, [{"foo": "a", "bar": "b"}] * 4) if kind == "parquet" else jsonl([*rows(0, 2), {"foo": 1}])
    )
    with pytest.raises(
        ValueError, match=rf"data.{kind}, {place if kind == 'jsonl' else 'row 1'}: .*foo.*messages.*output"
    ):
        load(repo=str(file), test_ratio=0.0)
    assert load(repo=str(file), on_error="skip").report.total.dropped["broken lines"] == (4 if kind == "parquet" else 1)


def test_a_file_of_one_row_group_is_read_in_parts(tmp_path: Path, load: Load) -> None:
    (tmp_path / "one.parquet").write_bytes(parquet(rows(0, 3000), row_group_size=3000))
    assert len(answers(load(repo=str(tmp_path / "one.parquet"), test_ratio=0.0))) == 3000


@pytest.mark.parametrize("content", [parquet(rows(0, 50))[:-20], parquet(rows(0, 50))[:300], b"PAR1", b"no parquet"])
def test_a_damaged_parquet_file_is_said(tmp_path: Path, load: Load, content: bytes) -> None:
    (tmp_path / "data.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.parquet .*damaged"):
        load(repo=str(tmp_path))


def test_parquet_needs_pyarrow(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.parquet").write_bytes(parquet(rows(0, 5)))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pyarrow"):
        load(repo=str(tmp_path))


# --- which files


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "parquet" if name.endswith("parquet") else "jsonl"
        (folder / name).write_bytes(packed(kind, rows(10 * number, 10 * number + 10)))


@pytest.mark.parametrize(
    ("names", "pattern", "read"),
    [
        (["a.jsonl", "b.parquet", "c.parquet"], None, [1, 2]),  # one kind only: the same records in two forms
        (["data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet"], None, [1, 2]),
        (["train/a.jsonl", "valid/a.jsonl"], None, [0]),
        (["a.jsonl", "b.parquet", "sub/b.jsonl"], "*.jsonl", [0, 2]),
        (["1M.parquet", "3M.parquet"], "1M*", [0]),
        (["a.parquet", ".cache/b.parquet"], None, [0]),
    ],
)
def test_one_kind_of_files_is_read_or_those_like_the_pattern(
    tmp_path: Path, load: Load, names: list[str], pattern: str | None, read: list[int]
) -> None:
    write(tmp_path, *names)
    corpus = load(repo=str(tmp_path), files=pattern, test_ratio=0.0)
    assert sorted(answers(corpus)) == [10 * number + i for number in read for i in range(10)]


def test_what_is_no_corpus_is_said(tmp_path: Path, load: Load) -> None:
    (tmp_path / "notes.txt").touch()
    write(tmp_path / "full", "a.parquet")
    for options, key in (
        ({"repo": str(tmp_path / "notes.txt")}, r"notes\.txt"),
        ({"repo": str(tmp_path), "files": "*.csv"}, r"\*\.csv.*a\.parquet"),
        ({"repo": "nowhere", "data_dir": tmp_path / "empty"}, "nowhere"),
        ({"repo": ORCA, "source": "local", "data_dir": tmp_path / "empty"}, ORCA),
    ):
        with pytest.raises(ValueError, match=key):
            load(**options)


def test_a_corpus_lies_in_a_folder_of_its_name() -> None:
    assert SlimOrcaConfig().folder == Path("data/slimorca")
    assert SlimOrcaConfig(repo=ORCA).folder == Path("data/openorca")
    assert SlimOrcaConfig(repo=ORCA, data_dir="here").folder == Path("here")


# --- the Hub

NAMES = ("1M-GPT4-Augmented.parquet", "data/3_5M-GPT3_5-Augmented.parquet")


def orca_hub(hub: FakeHub) -> None:
    hub.files = {"README.md": b"card", NAMES[0]: parquet(rows(0, 200)), NAMES[1]: parquet(rows(200, 300))}


def test_a_repository_is_downloaded_whole_and_once(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    orca_hub(hub)
    corpus = load(repo=ORCA, data_dir=tmp_path)
    assert (answers(corpus), answers(corpus, "test")) == split_answers(300)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {*NAMES, "names.json"}
    assert any(f"/datasets/{ORCA}/" in request for request in hub.requests)

    asked = len(hub.requests)
    for source in ("auto", "local", "hub"):
        assert answers(load(repo=ORCA, data_dir=tmp_path, source=source)) == answers(corpus)
    known = corpus_digest(SlimOrcaConfig(repo=ORCA, data_dir=tmp_path))
    assert corpus_digest(SlimOrcaConfig(repo=str(tmp_path / NAMES[0]))) == known
    assert len(hub.requests) == asked

    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(ValueError, match="3_5M"):
        load(repo=ORCA, data_dir=tmp_path, source="local")
    assert answers(load(repo=ORCA, data_dir=tmp_path)) == answers(corpus)


def test_a_subset_takes_no_more_files_than_it_needs(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    orca_hub(hub)
    corpus = load(repo=ORCA, data_dir=tmp_path, subset_size=100, test_size=10)
    assert answers(corpus) == split_answers(300)[0][:100]
    assert not any("3_5M" in request for request in hub.requests)
    assert answers(load(repo=ORCA, data_dir=tmp_path)) == split_answers(300)[0]


def test_lines_of_a_repository_are_downloaded_as_far_as_they_are_read(
    hub: FakeHub, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset.files.download, "HEAD_STEP_BYTES", 3000)
    monkeypatch.setattr(dataset.files.download, "BLOCK_BYTES", 1000)
    hub.files = {"a.jsonl": jsonl(rows(0, 400)), "b.jsonl": jsonl(rows(400, 800))}
    corpus = load(repo="someone/else", data_dir=tmp_path, subset_size=20, test_size=5)
    assert answers(corpus) == split_answers(800)[0][:20]
    assert hub.sent < len(hub.files["a.jsonl"]) / 2
    assert answers(load(repo="someone/else", data_dir=tmp_path)) == split_answers(800)[0]


def test_a_download_that_breaks_off_is_continued(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    orca_hub(hub)
    hub.fails_after = len(hub.files[NAMES[0]]) + 100
    with pytest.raises(ValueError, match=r"3_5M.*stopped"):
        load(repo=ORCA, data_dir=tmp_path)
    hub.fails_after = None
    hub.requests.clear()
    assert answers(load(repo=ORCA, data_dir=tmp_path)) == split_answers(300)[0]
    assert not any("1M" in request for request in hub.requests) and "bytes=100-" in hub.requests[-1]


def test_no_name_leaves_the_folder(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    hub.files = {"../away.parquet": parquet(rows(0, 9)), "in.parquet": parquet(rows(0, 5))}
    assert len(answers(load(repo=ORCA, data_dir=tmp_path / "in", test_ratio=0.0))) == 5
    assert not (tmp_path / "away.parquet").exists()


# --- samples

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SOME_ROWS = st.lists(st.fixed_dictionaries({"system_prompt": TEXT, "question": TEXT, "response": TEXT}), max_size=12)


@given(SOME_ROWS, st.floats(0.01, 1), st.floats(0.01, 1), st.randoms())
def test_what_a_record_says_decides_whether_it_is_in_the_sample(
    records: list[Row], one: float, other: float, random: Any
) -> None:
    """Not its place, nor the form and order of its fields; a larger sample holds a smaller one."""
    for record in records:
        keys = [*record, "id"]
        random.shuffle(keys)
        reordered = {key: record.get(key, random.random()) for key in keys}
        messages = [{"role": role, "content": record[key]} for role, key in
                    (("system", "system_prompt"), ("user", "question"), ("assistant", "response"))]  # fmt: skip
        forms = [record, reordered, {"messages": messages}]
        forms += [json.dumps(form, ensure_ascii=random.random() < 0.5).encode() for form in forms]
        assert len({is_sampled(form, one) for form in forms}) == 1
        assert is_sampled(record, max(one, other)) or not is_sampled(record, min(one, other))


def test_a_sample_is_the_share_of_the_same_records_in_any_order_and_form(tmp_path: Path, load: Load) -> None:
    records = rows(0, 1000)
    (tmp_path / "a.jsonl").write_bytes(jsonl(records))
    (tmp_path / "b.parquet").write_bytes(parquet(records[::-1]))
    found = [
        set(answers(corpus) + answers(corpus, "test"))
        for name in ("a.jsonl", "b.parquet")
        if (corpus := load(repo=str(tmp_path / name), sample=0.3))
    ]
    assert found[0] == found[1] and 240 < len(found[0]) < 360
    whole = load(repo=str(tmp_path / "a.jsonl"))
    part = load(repo=str(tmp_path / "a.jsonl"), sample=0.3)
    assert answers(part) == [i for i in answers(whole) if i in found[0]]  # no record changes its split
    assert answers(load(repo=str(tmp_path / "a.jsonl"), sample=0.3, subset_size=50)) == answers(part)[:50]


def test_a_sample_of_nothing_is_said(tmp_path: Path, load: Load) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows(0, 3)))
    with pytest.raises(ValueError, match="sample"):
        load(repo=str(tmp_path), sample=1e-9)


# --- several corpora in a row


@pytest.mark.parametrize("processes", [1, 2])
def test_later_stages_are_not_asked_what_the_first_holds_out(
    tmp_path: Path, load: Load, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the answer and the system prompt."""
    monkeypatch.setattr(dataset.text.slimorca, "POOL_PAYS_LINES", 1 if processes == 2 else 1000)
    monkeypatch.setattr(dataset.text.slimorca, "CHUNK_LINES", 16)
    monkeypatch.setattr(dataset.text.slimorca, "_num_cores", lambda: processes)
    (tmp_path / "a.jsonl").write_bytes(jsonl([make_record(row["question"], row["response"]) for row in rows(0, 100)]))
    (tmp_path / "b.parquet").write_bytes(parquet([row | {"system_prompt": "Be brief."} for row in rows(50, 150)]))
    (tmp_path / "c.jsonl").write_bytes(jsonl(rows(0, 30)))
    train, test = split_answers(100)
    later = tuple(
        SlimOrcaConfig(repo=str(tmp_path / name), subset_size=None, test_ratio=0.0) for name in ("b.parquet", "c.jsonl")
    )
    corpus = load(repo=str(tmp_path / "a.jsonl"), later=later)
    found = answers(corpus)
    assert [found[documents.start : documents.stop] for documents in corpus.stages] == [
        train, [i for i in range(50, 150) if i not in test], [i for i in range(30) if i not in test]
    ]  # fmt: skip
    assert (answers(corpus, "test"), corpus.test_sets) == (test, {"test": range(len(test))})
    left_out = sum(i >= 50 for i in test) + sum(i < 30 for i in test)
    assert corpus.report.total.dropped == {"that the first stage holds out": left_out}
    assert corpus.report.records == 230
