"""The chat builder: what it writes, how it splits, that it says what it did, and what it refuses."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.build_chat_dataset import main
from dataset.chat import chat_dataset
from dataset.chat.reader import open_chat_data, read_chat_metadata
from dataset.puzzles.format import open_split
from dataset.tokenization.special_tokens import load_chat_tokenizer
from tests.dataset.conversation_files import build, make_chat, make_chats, write_json

ROOT = Path(__file__).parents[2]


def array(folder: Path, name: str, split: str = "train") -> np.ndarray:
    return np.load(folder / split / f"all__{name}.npy", allow_pickle=False)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(folder: Path, split: str) -> list[str]:
    documents, _ = open_chat_data([folder], split)
    tokenizer = load_chat_tokenizer(folder / "tokenizer")
    return [tokenizer.decode(documents.document(i)[0].tolist()) for i in range(len(documents))]


def refusal(folder: Path, records: Any, *flags: str) -> str:
    with pytest.raises(SystemExit) as caught:
        build(folder, records, *flags)
    return str(caught.value)


@pytest.mark.parametrize("flags", [(), ("--pack",)], ids=["one a row", "packed"])
def test_rows_are_inputs_and_shifted_labels(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = build(tmp_path / "d", make_chats(40), *flags)
    tokenizer = load_chat_tokenizer(folder / "tokenizer")
    inputs, labels, places = (array(folder, name) for name in ("inputs", "labels", "places"))
    assert (inputs.dtype, labels.dtype) == (np.uint16, np.int32)
    assert inputs.shape == labels.shape and inputs.shape[1] == 96
    is_covered = np.zeros(inputs.shape, dtype=bool)
    for row, start, stop in places:
        inside = labels[row, start : stop - 1]
        assert np.all((inside == -100) | (inside == inputs[row, start + 1 : stop])), "labels[t] is token[t + 1]"
        assert labels[row, stop - 1] != -100, "a document ends with a supervised token"
        assert not is_covered[row, start:stop].any()
        is_covered[row, start:stop] = True
    assert np.all(inputs[~is_covered] == tokenizer.pad_id) and np.all(labels[~is_covered] == -100)
    assert (len(inputs) < len(places)) == bool(flags)


def test_packed_rows_mark_their_documents(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(40), "--pack", "--max-length", "400")
    marks, places = array(folder, "documents"), array(folder, "places")
    expected = np.full(array(folder, "inputs").shape, -1)
    numbers: dict[int, int] = {}
    for row, start, stop in places.tolist():
        expected[row, start:stop] = numbers.setdefault(row, 0)
        numbers[row] += 1
    assert (marks == expected).all() and max(numbers.values()) > 2
    assert not (build(tmp_path / "plain", make_chats(9)) / "train" / "all__documents.npy").exists()


def test_puzzle_reader_finds_nothing_wrong(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(40), "--pack")
    opened = open_split(folder, "train", check=True)
    assert opened.metadata.total_groups == len(opened.sets["all"].inputs)


def test_inputs_are_bytes_where_the_vocabulary_allows(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(9), tokenizer="train:300")
    assert array(folder, "inputs").dtype == np.min_scalar_type(read_chat_metadata(folder, "train").vocab_size - 1)


def test_split_is_by_record_number_and_seed_alone(tmp_path: Path) -> None:
    chats = make_chats(60)
    one = build(tmp_path / "one", chats)
    held_out = texts(one, "test")
    assert 3 < len(held_out) < 25 and not set(held_out) & set(texts(one, "train"))
    changed = [chats[n] if n < 30 else make_chat(n + 500) for n in range(60)]
    other = texts(build(tmp_path / "other", changed, "--max-length", "80", tokenizer=str(one / "tokenizer")), "test")
    assert [text for text in other if text in held_out] == [text for text in held_out if text in other] != []
    assert len(other) == len(held_out)
    assert texts(build(tmp_path / "seed", chats, "--seed", "7", tokenizer=str(one / "tokenizer")), "test") != held_out


def test_tokenizer_learns_nothing_that_is_held_out(tmp_path: Path) -> None:
    chats = make_chats(60)
    one = build(tmp_path / "one", chats)
    held_out = {int(text.split()[0]) for text in texts(one, "test")}
    assert held_out
    changed = [make_chat(n + 700) if n in held_out else chats[n] for n in range(60)]
    assert content(build(tmp_path / "two", changed) / "tokenizer") == content(one / "tokenizer")


def test_whole_file_may_be_for_training_or_for_testing(tmp_path: Path) -> None:
    for share, split in (("1", "train"), ("0", "test")):
        folder = build(tmp_path / split, make_chats(9), "--train-split", share)
        assert [file.parent.name for file in folder.glob("*/dataset.json")] == [split]


def test_subsample_is_the_first_conversations(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(60), "--subsample-size", "10", "--train-split", "1")
    whole = build(tmp_path / "w", make_chats(60), "--train-split", "1", tokenizer=str(folder / "tokenizer"))
    assert texts(folder, "train") == texts(whole, "train")[:10]


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_loss_is_on_answers_or_on_every_turn(tmp_path: Path, loss_on: str) -> None:
    folder = build(tmp_path / "d", [make_chat(1)] * 4, "--loss-on", loss_on, "--train-split", "1")
    documents, metadata = open_chat_data([folder], "train")
    ids, is_trained = documents.document(0)
    tokenizer = load_chat_tokenizer(folder / "tokenizer")
    question, answer = (turn["value"] for turn in make_chat(1)["conversations"])
    learnt = tokenizer.decode(ids[is_trained].tolist())
    assert answer in learnt and (question in learnt) == (loss_on == "all")
    assert metadata.chat.loss_on == loss_on


def test_conversation_without_an_answer_is_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [{"conversations": [{"from": "human", "value": "Hi"}]}, {"conversations": []}]
    unasked = make_chat(4)
    unasked["conversations"][0]["value"] = None
    folder = build(tmp_path / "d", [*make_chats(3), *silent, unasked], "--train-split", "1")
    assert "3 conversations" in (out := capsys.readouterr().out)
    assert "dropped: 2 without an answer" in out and "1 without the text of a question" in out
    assert read_chat_metadata(folder, "train").chat.dropped == 3


def test_long_conversations_are_truncated_split_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats = [make_chat(1), make_chat(2, num_turns=40)]
    found = {}
    for long in ("truncate", "split", "drop"):
        folder = build(tmp_path / long, chats, "--train-split", "1", "--long", long)
        documents, metadata = open_chat_data([folder], "train")
        assert documents.lengths().max() <= 96
        found[long] = len(documents)
        trained = sum(int(documents.document(index)[1].sum()) for index in range(len(documents)))
        assert f"{trained} of them supervised" in capsys.readouterr().out
        assert metadata.chat.truncated == (long == "truncate") and metadata.chat.dropped == (long == "drop")
    assert found["truncate"] == 2 and found["split"] > 3 and found["drop"] == 1


def test_row_is_full_to_its_last_place(tmp_path: Path) -> None:
    endless = {"instruction": "Count.", "output": " ".join(map(str, range(500)))}
    folder = build(tmp_path / "d", [endless], "--train-split", "1")
    assert array(folder, "places").tolist() == [[0, 0, 96]]
    assert array(folder, "labels")[0, -1] != -100


def test_report_says_what_became_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build(tmp_path / "d", make_chats(40), "--pack")
    told = capsys.readouterr()
    for split in ("train", "test"):
        documents, _ = open_chat_data([folder], split)
        line = next(line for line in told.out.splitlines() if line.strip().startswith(split))
        assert f"{len(documents)} conversations in {len(array(folder, 'inputs', split))} rows" in line
        ids, flags = zip(*map(documents.document, range(len(documents))), strict=True)
        assert f"{sum(map(len, ids))} tokens, {sum(int(flag.sum()) for flag in flags)} of them supervised" in line
        assert f"0 supervised tokens lost; longest {documents.lengths().max() + 1} tokens; dropped: none" in line
    assert "format: sharegpt, as the first records" in told.err and "encoding: 100%" in told.err


def test_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_dataset, "CHUNK_CHARACTERS", 4 * chat_dataset.CONVERSATION_CHARACTERS)
    monkeypatch.setattr(chat_dataset, "ALONE_CHUNKS", 2)
    one = build(tmp_path / "one", make_chats(60), "--pack")
    two = build(tmp_path / "two", make_chats(60), "--pack", "--num-workers", "2")
    assert content(one) == content(two)


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    files = [write_json(tmp_path / f"{n}.json", make_chats(20)[10 * n : 10 * n + 10]) for n in range(2)]
    flags = ["--tokenizer", "train:400", "--max-length", "96", "--train-split", "0.8"]
    main(["--input-file", *map(str, files), "--output-dir", str(tmp_path / "files"), *flags])
    assert content(build(tmp_path / "one", make_chats(20))) == content(tmp_path / "files")


@pytest.mark.parametrize("form", [["-m", "dataset.build_chat_dataset"], [str(ROOT / "dataset/build_chat_dataset.py")]])
def test_both_ways_of_running_build_it(tmp_path: Path, form: list[str]) -> None:
    file = write_json(tmp_path / "chats.json", make_chats(9))
    command = [sys.executable, *form, "--input-file", str(file), "--output-dir", "out", "--tokenizer", "train:400"]
    environment = os.environ | ({"PYTHONPATH": str(ROOT)} if form[0] == "-m" else {})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out: max_length 2048, vocab_size ")
    assert len(open_chat_data([tmp_path / "out"], "train")[0]) == 9


@pytest.mark.parametrize(
    ("records", "flags", "words"),
    [
        ([{"conversations": [{"from": "human", "value": "Hi"}]}], (), "No conversations left: 1 without an answer"),
        ([make_chat(2, 40)], ("--long", "drop"), "No conversations left: 1 too long.*raise --max-length=96"),
        (make_chats(3), ("--train-split", "0.000001"), "No conversations left for training: 3 are held out"),
        (make_chats(3), ("--format", "alpaca"), "record 1: .* is not alpaca but looks like sharegpt"),
        ([{"conversations": [{"from": "narrator", "value": ""}]}], (), "record 1: unknown role 'narrator'"),
        ([], (), "no record in the input"),
        (make_chats(3), ("--tokenizer", "train:nothing"), "train:"),
    ],
)
def test_what_cannot_be_built_is_refused(
    tmp_path: Path, records: list[Any], flags: tuple[str, ...], words: str
) -> None:
    told = refusal(tmp_path / "d", records, *flags)
    assert told.startswith("error: ")
    assert re.search(words, told), told
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"], "nothing is left behind"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-length", "3"), "--max-length: 3 is not 8 or more"),
        (("--train-split", "1.5"), "--train-split: 1.5 is not between 0 and 1"),
        (("--train-split", "nan"), "--train-split: nan is not between 0 and 1"),
        (("--subsample-size", "0"), "--subsample-size: 0 is not 1 or more"),
    ],
)
def test_flags_out_of_range_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    refusal(tmp_path / "d", make_chats(3), *flags)
    assert words in capsys.readouterr().err


def test_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing.json"):
        main(["--input-file", str(tmp_path / "nothing.json"), "--output-dir", str(tmp_path / "d")])


def test_another_data_set_is_replaced_only_if_told(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(9))
    before = content(folder)
    assert content(build(folder, make_chats(9))) == before
    assert "holds a different data set" in refusal(folder, make_chats(12))
    assert content(folder) == before
    build(folder, make_chats(12), "--overwrite")
    assert content(folder) != before


def test_folder_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "d" / "tokenizer").mkdir(parents=True)
    (tmp_path / "d" / "tokenizer" / "mine.model").write_text("mine")
    told = refusal(tmp_path / "d", make_chats(9), "--overwrite")
    assert "belongs to no data set (tokenizer)" in told
    assert content(tmp_path / "d") == {"tokenizer/mine.model": b"mine"}


def test_full_disk_is_told_before_the_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dataset.chat.writer.shutil.disk_usage", lambda folder: usage)
    assert "Use --pack, a smaller --max-length" in refusal(tmp_path / "d", make_chats(9))


def test_dataset_json_holds_what_chat_needs(tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(40), "--pack")
    found = json.loads((folder / "train" / "dataset.json").read_text())
    tokenizer = load_chat_tokenizer(folder / "tokenizer")
    assert (found["vocab_size"], found["pad_id"], found["seq_len"]) == (tokenizer.vocab_size, tokenizer.pad_id, 96)
    assert found["chat"]["is_packed"] and found["chat"]["format_version"] == 1
    lengths = np.diff(array(folder, "places")[:, 1:], axis=1)
    assert found["chat"]["max_document"] == lengths.max()


@pytest.mark.parametrize("failing", ["rows", "tokenizer"])
def test_a_full_disk_names_the_folder_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((np, "save") if failing == "rows" else (os, "fsync")), full)
    said = refusal(tmp_path / "d", make_chats(9))
    assert str(tmp_path) in said and "disk is full" in said
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]
