import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import dataset.files.disk
import dataset.files.download
import dataset.text.slimorca
from dataset.files.jsonl import UNUSED, assign_splits, line_counts, numbered_lines
from dataset.text.slimorca import InstructCorpus, SlimOrcaConfig, corpus_digest, load_corpus
from dataset.text.token_store import DocumentStore
from tests.dataset.instruct_samples import FakeHub, make_lines, make_record

Writer = Callable[[list[str]], Path]
HUB_NAME = "oo-labeled_correct.gpt4.sharegpt.jsonl"


@pytest.fixture
def load(tokenizer_path: Path) -> Callable[..., InstructCorpus]:
    def run(data_dir: Path, **options: object) -> InstructCorpus:
        defaults = {"seq_len": 128, "subset_size": None, "test_ratio": 0.25}
        config = SlimOrcaConfig(data_dir=data_dir, **defaults | options)  # type: ignore[arg-type]
        return load_corpus(config, tokenizer_path, progress=False)

    return run


Load = Callable[..., InstructCorpus]


def answers(corpus: InstructCorpus, store: DocumentStore) -> list[str]:
    documents = (store.document(index) for index in range(len(store)))
    return [corpus.tokenizer.decode(ids[is_trained].tolist()) for ids, is_trained in documents]


def all_answers(corpus: InstructCorpus) -> list[str]:
    return answers(corpus, corpus.train) + answers(corpus, corpus.test)


def expected_answers(count: int) -> set[str]:
    return {f"The answer is {2 * i}." for i in range(count)}


# --- the split


def test_every_record_is_in_exactly_one_split(write_corpus: Writer, load: Load) -> None:
    corpus = load(write_corpus(make_lines(200)))
    assert sorted(all_answers(corpus)) == sorted(expected_answers(200))
    assert 30 <= len(corpus.test) <= 70
    kept = {split: report.conversations for split, report in corpus.report.splits.items()}
    assert kept == {"train": len(corpus.train), "test": len(corpus.test)}


def test_the_split_follows_from_the_seed(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus(make_lines(100))
    first = load(folder)
    assert answers(load(folder), first.test) == answers(first, first.test)
    assert answers(first, load(folder, seed=1).test) != answers(first, first.test)


@pytest.mark.parametrize(("test_size", "held_out"), [("auto", 2), (5, 5), (None, None)])
def test_sizes_cap_each_split_and_move_no_record(
    write_corpus: Writer, load: Load, test_size: int | str | None, held_out: int | None
) -> None:
    """By default what is held out stays a tenth of what is trained on."""
    folder = write_corpus(make_lines(300))
    whole, subset = load(folder), load(folder, subset_size=20, test_size=test_size)
    assert answers(subset, subset.train) == answers(whole, whole.train)[:20]
    assert answers(subset, subset.test) == answers(whole, whole.test)[:held_out] != []


@given(subset_size=st.none() | st.integers(1, 10**6))
def test_evaluation_is_at_most_a_tenth_of_training(subset_size: int | None) -> None:
    train, test = SlimOrcaConfig(subset_size=subset_size).sizes
    assert train == subset_size
    assert test is None if train is None else test == 1 or 1 < test <= train / 10


def test_the_corpus_is_known_by_its_text_wherever_it_lies(write_corpus: Writer, tmp_path: Path) -> None:
    import zstandard

    lines = make_lines(30_000)  # longer than what is looked at
    folder = write_corpus(lines)
    content = (folder / "SlimOrca.jsonl").read_bytes()
    packed, other = tmp_path / "packed", tmp_path / "other"
    for place, name, data in (
        (packed, "SlimOrca.jsonl.zst", zstandard.compress(content)),
        (other, "SlimOrca.jsonl", content[1:]),
    ):
        place.mkdir()
        (place / name).write_bytes(data)
    known = corpus_digest(SlimOrcaConfig(folder))
    assert corpus_digest(SlimOrcaConfig(packed)) == known != corpus_digest(SlimOrcaConfig(other))


def test_without_a_test_ratio_all_is_for_training(write_corpus: Writer, load: Load) -> None:
    corpus = load(write_corpus(make_lines(50)), test_ratio=0.0, subset_size=30)
    assert (len(corpus.train), len(corpus.test)) == (30, 0)


@given(
    blocks=st.lists(st.text("ab\n", min_size=1, max_size=12), max_size=8), seed=st.integers(0, 2**40),
    sizes=st.tuples(*[st.none() | st.integers(1, 4)] * 2), test_ratio=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_lines_are_assigned_as_they_are_numbered(
    blocks: list[str], seed: int, sizes: tuple[int | None, int | None], test_ratio: float
) -> None:
    """However the text is cut into blocks; a subset is the beginning of the whole."""
    texts = [block.encode() for block in blocks]
    lines = list(numbered_lines(texts))
    assert b"".join(texts).split(b"\n")[: len(lines)] == [line for _, line in lines]
    assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
    whole = [np.ones(count, dtype=np.bool_) for count in line_counts(texts)]
    every = assign_splits(whole, seed, test_ratio, (None, None))
    assert len(every) == len(lines)
    some = assign_splits(whole, seed, test_ratio, sizes)
    for split in (0, 1):
        np.testing.assert_array_equal(np.flatnonzero(some == split), np.flatnonzero(every == split)[: sizes[split]])
    assert len(some) == 0 or some[-1] != UNUSED


def test_the_share_of_test_lines_is_the_ratio() -> None:
    splits = assign_splits([np.ones(100_000, dtype=np.bool_)], seed=3, test_ratio=0.05, sizes=(None, None))
    assert 0.047 < (splits == 1).mean() < 0.053


# --- files


def test_a_packed_file_is_read_like_a_plain_one(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus(make_lines(60))
    plain = load(folder)
    packed = folder / "SlimOrca.jsonl.zst"
    text = (folder / "SlimOrca.jsonl").read_bytes()
    frames = [zstandard.compress(text[:999]), zstandard.compress(text[999:])]  # as written in two goes
    packed.write_bytes(b"".join(frames))
    (folder / "SlimOrca.jsonl").unlink()
    assert all_answers(load(folder)) == all_answers(plain)

    packed.write_bytes(b"".join(frames)[:-9])
    with pytest.raises(ValueError, match=r"SlimOrca.jsonl.zst .*cut off"):
        load(folder)
    packed.write_bytes(text)
    with pytest.raises(ValueError, match=r"SlimOrca.jsonl.zst .*damaged"):
        load(folder)


def test_a_packed_file_needs_zstandard(write_corpus: Writer, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_corpus([]) / "SlimOrca.jsonl").rename(folder := write_corpus([]) / "SlimOrca.jsonl.zst")
    folder.write_bytes(zstandard.compress(b"{}"))
    (folder.parent / "SlimOrca.jsonl").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="zstandard"):
        load(folder.parent)


def test_a_file_under_its_name_on_the_hub_is_found(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus(make_lines(10))
    (folder / "SlimOrca.jsonl").rename(folder / HUB_NAME)
    assert len(all_answers(load(folder, source="local"))) == 10


def test_a_last_line_without_an_end_counts(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus([])
    (folder / "SlimOrca.jsonl").write_text("\ufeff" + "\r\n".join(make_lines(7)))
    assert set(all_answers(load(folder))) == expected_answers(7)


def test_an_empty_file_is_an_error(write_corpus: Writer, load: Load) -> None:
    with pytest.raises(ValueError, match=r"SlimOrca.jsonl"):
        load(write_corpus([]))


def test_a_missing_local_file_is_an_error_that_names_the_choices(tmp_path: Path, load: Load) -> None:
    with pytest.raises(ValueError, match=r"SlimOrca.jsonl.*SlimOrca.jsonl.zst.*sample"):
        load(tmp_path, source="local")


# --- records


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (make_lines(1)[0][:-9], "delimiter|Expecting|Unterminated"),
        ("[" * 100_000, "recursion"),
        ('{"text": "x"}', "found the fields text, expected 'conversations'"),
        ('{"conversations": [{"from": "tool", "value": "x"}]}', "unknown role 'tool'"),
        ('{"prompt": "\\ud800", "response": "a"}', "not valid Unicode"),
    ],
)
def test_a_broken_line_is_an_error_with_its_number_or_is_skipped(
    write_corpus: Writer, load: Load, line: str, problem: str
) -> None:
    folder = write_corpus([*make_lines(5), line, *make_lines(4)])
    with pytest.raises(ValueError, match=rf"SlimOrca.jsonl, line 6: .*({problem}).*on_error=skip"):
        load(folder)
    corpus = load(folder, on_error="skip")
    assert len(all_answers(corpus)) == 9
    assert corpus.report.total.dropped == {"broken lines": 1}
    assert corpus.report.records == 10


def test_bytes_that_are_no_text_are_a_broken_line(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus(make_lines(3))
    with open(folder / "SlimOrca.jsonl", "ab") as file:
        file.write(b'{"prompt": "\xff", "response": "a"}\n')
    with pytest.raises(ValueError, match="line 4: .*utf-8"):
        load(folder)


def test_records_without_question_or_answer_are_skipped_and_counted(write_corpus: Writer, load: Load) -> None:
    weightless = make_record("q", "a")
    weightless["conversations"][-1]["weight"] = 0
    unasked = make_record("q", "a")
    unasked["conversations"][0]["value"] = None
    lines = [json.dumps(record) for record in (make_record("q", ""), weightless, unasked)]
    corpus = load(write_corpus([*lines, *make_lines(8)]))
    assert set(all_answers(corpus)) == expected_answers(8)
    assert corpus.report.total.dropped == {"without an answer": 2, "without the text of a question": 1}


def test_blank_lines_are_passed_over(write_corpus: Writer, load: Load) -> None:
    corpus = load(write_corpus([*make_lines(4), " ", *make_lines(6)[4:], ""]))
    assert set(all_answers(corpus)) == expected_answers(6)
    assert corpus.report.records == 6


def test_a_record_longer_than_a_row_is_cut_or_its_prompt_is(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus([json.dumps(make_record("x" * 300, "The answer.")), *make_lines(5)])
    right = load(folder, seq_len=64, test_ratio=0.0)
    assert set(all_answers(right)) == expected_answers(5)
    assert right.report.total.dropped == {"without room for their answer": 1}
    prompt = load(folder, seq_len=64, test_ratio=0.0, truncate="prompt")
    assert all_answers(prompt)[0] == "The answer."
    assert prompt.report.total.truncated == 1 and not prompt.report.total.dropped
    assert prompt.train.lengths()[0] == 64


def test_the_report_counts_everything(write_corpus: Writer, load: Load) -> None:
    corpus = load(write_corpus(["broken", *make_lines(20)]), on_error="skip")
    report = corpus.report
    assert report.total.tokens == len(corpus.train.tokens) + len(corpus.test.tokens)
    assert report.total.trained_tokens == sum(len(corpus.tokenizer.encode(text)) + 1 for text in all_answers(corpus))
    for part in (
        "SlimOrca.jsonl: 21 records read", f"{len(corpus.train)} train, {len(corpus.test)} test", "1 broken lines",
        f"{report.total.tokens}, of which {report.total.trained_tokens}",
    ):  # fmt: skip
        assert part in report.summary()


@pytest.mark.parametrize("silent", [False, True])
def test_progress_goes_to_stderr_and_can_be_silenced(
    write_corpus: Writer, tokenizer_path: Path, silent: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SLIMORCA_TQDM", "0" if silent else "1")
    config = SlimOrcaConfig(write_corpus(make_lines(100)), subset_size=40, test_size=40, test_ratio=0.25)
    corpus = load_corpus(config, tokenizer_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    if silent:
        assert captured.err == ""
    else:
        total = len(corpus.train) + len(corpus.test)
        assert f"{total}/{total}" in captured.err and "tokenizing" in captured.err


# --- several processes


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.text.slimorca, "POOL_PAYS_LINES", 1)
    monkeypatch.setattr(dataset.text.slimorca, "CHUNK_LINES", 16)
    monkeypatch.setattr(dataset.text.slimorca, "_num_cores", lambda: 2)


def test_several_processes_give_the_same_corpus(
    write_corpus: Writer, load: Load, request: pytest.FixtureRequest
) -> None:
    folder = write_corpus([*make_lines(300), "broken", "", json.dumps(make_record("q", "")), *make_lines(5)])
    alone = load(folder, on_error="skip")
    request.getfixturevalue("in_processes")
    together = load(folder, on_error="skip")
    for name in ("tokens", "trained_bits", "offsets"):
        for split in ("train", "test"):
            assert torch.equal(getattr(getattr(together, split), name), getattr(getattr(alone, split), name))
    together.report.seconds = alone.report.seconds
    assert together.report == alone.report


@pytest.mark.usefixtures("in_processes")
def test_an_error_in_a_process_says_its_line(write_corpus: Writer, load: Load) -> None:
    folder = write_corpus([*make_lines(100), "broken", *make_lines(400)])
    with pytest.raises(ValueError, match="line 101"):
        load(folder)


# --- the Hub


def hub_file(hub: FakeHub, count: int = 400, name: str = HUB_NAME) -> bytes:
    hub.files = {"README.md": b"card", name: "\n".join(make_lines(count)).encode()}
    return hub.files[name]


@pytest.mark.parametrize("name", [HUB_NAME, "renamed.jsonl"])
def test_the_corpus_is_downloaded_whatever_it_is_called(hub: FakeHub, tmp_path: Path, load: Load, name: str) -> None:
    content = hub_file(hub, name=name)
    corpus = load(tmp_path)
    assert set(all_answers(corpus)) == expected_answers(400)
    assert (tmp_path / "SlimOrca.jsonl").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["SlimOrca.jsonl"]

    asked = len(hub.requests)
    for source in ("auto", "local", "hub"):
        assert all_answers(load(tmp_path, source=source)) == all_answers(corpus)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_subset_downloads_only_the_head(
    hub: FakeHub, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, ignores_ranges: bool
) -> None:
    monkeypatch.setattr(dataset.files.download, "HEAD_STEP_BYTES", 3000)
    monkeypatch.setattr(dataset.files.download, "BLOCK_BYTES", 1000)
    content = hub_file(hub)
    hub.ignores_ranges = ignores_ranges
    corpus = load(tmp_path, subset_size=10, test_size=10)
    assert (len(corpus.train), len(corpus.test)) == (10, 10)
    assert not (tmp_path / "SlimOrca.jsonl").exists()
    (part,) = tmp_path.glob("*.part")
    assert 0 < part.stat().st_size < len(content) / 2 and content.startswith(part.read_bytes())

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a head that is there serves without a network
    assert (
        all_answers(load(tmp_path, subset_size=8, test_size=8))
        == answers(corpus, corpus.train)[:8] + answers(corpus, corpus.test)[:8]
    )
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        load(tmp_path, subset_size=50)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert set(all_answers(load(tmp_path))) == expected_answers(400)
    assert (tmp_path / "SlimOrca.jsonl").read_bytes() == content


def test_a_subset_larger_than_the_corpus_completes_it(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    content = hub_file(hub, count=30)
    assert set(all_answers(load(tmp_path, subset_size=500))) == expected_answers(30)
    assert (tmp_path / "SlimOrca.jsonl").read_bytes() == content


@pytest.mark.parametrize("subset_size", [None, 150])
def test_a_download_that_breaks_off_is_no_corpus_and_is_continued(
    hub: FakeHub, tmp_path: Path, load: Load, subset_size: int | None
) -> None:
    content = hub_file(hub)
    hub.fails_after = len(content) // 3
    with pytest.raises(ValueError, match=r"stopped at .* MB"):
        load(tmp_path, subset_size=subset_size)
    assert not (tmp_path / "SlimOrca.jsonl").exists()

    hub.fails_after = None
    hub.requests.clear()
    corpus = load(tmp_path, subset_size=subset_size)
    assert set(all_answers(corpus)) <= expected_answers(400)
    assert hub.requests[0].endswith(f"bytes={len(content) // 3}-{len(content) - 1}")


def test_a_passing_fault_is_survived(hub: FakeHub, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    content = hub_file(hub)
    hub.fails_after = 5000
    monkeypatch.setattr(dataset.files.download.time, "sleep", lambda seconds: setattr(hub, "fails_after", None))
    load(tmp_path)
    assert (tmp_path / "SlimOrca.jsonl").read_bytes() == content


def test_a_damaged_download_is_deleted(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    hub_file(hub)
    hub.wrong_sha256 = True
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    assert not list(tmp_path.glob("SlimOrca.jsonl")) and not list(tmp_path.glob("*.part"))


def test_a_disk_that_is_full_before_the_download_is_said(
    hub: FakeHub, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_file(hub)
    monkeypatch.setattr(dataset.files.disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r" 0.0 MB .*disk is full"):
        load(tmp_path)
    assert not (tmp_path / "SlimOrca.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_disk_that_fills_up_during_the_download_is_said(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    hub_file(hub)
    (tmp_path / "SlimOrca.jsonl.01234567.part").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="disk is full"):
        load(tmp_path)
    assert not (tmp_path / "SlimOrca.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_said(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    hub_file(hub)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Cannot write .*file"):
        load(tmp_path / "file" / "data")


def test_no_network_is_said(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9.*SlimOrca.jsonl"):
        load(tmp_path)


def test_a_repository_without_jsonl_is_said(hub: FakeHub, tmp_path: Path, load: Load) -> None:
    hub.files = {"README.md": b"card"}
    with pytest.raises(ValueError, match=".jsonl.*README.md"):
        load(tmp_path)


def test_several_processes_download_once(hub: FakeHub, tmp_path: Path) -> None:
    content = hub_file(hub, count=3000)
    code = (
        "from pathlib import Path; from dataset.files.download import find_hub_file; "
        f"find_hub_file('Open-Orca/SlimOrca', {HUB_NAME!r}, Path({str(tmp_path / 'SlimOrca.jsonl')!r})).fetch()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert (tmp_path / "SlimOrca.jsonl").read_bytes() == content
    assert hub.sent == len(content)
    assert [path.name for path in tmp_path.iterdir()] == ["SlimOrca.jsonl"]
