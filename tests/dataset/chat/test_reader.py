"""Conversations come back from disk as they were encoded, alone or mixed, and make the batches of instruct_dataset."""

import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset.chat.reader import ChatDocuments, chat_splits, chat_tokenizer_folder, open_chat_data
from dataset.chat.template import ChatEncoder
from dataset.cursor import CursorConfig, RowDataset
from dataset.text.conversation import Turn, has_answer
from dataset.text.packing import DocumentRows
from dataset.tokenization.special_tokens import load_chat_tokenizer
from tests.dataset.conversation_files import build, from_turns, make_chat, make_chats

turns = st.builds(Turn, st.sampled_from(["user", "assistant", "system"]), st.text(max_size=12))
conversations = st.lists(st.lists(turns, max_size=5), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "d", make_chats(40), "--pack")


def all_documents(documents: ChatDocuments) -> list[tuple[list[int], list[bool]]]:
    return [tuple(part.tolist() for part in documents.document(i)) for i in range(len(documents))]


def reader(documents: ChatDocuments, pad_id: int, seq_len: int = 96, **more: Any) -> RowDataset:
    rows = DocumentRows(documents, seq_len, pad_id)
    return RowDataset(rows, CursorConfig(**{"global_batch_size": 4} | more), "train")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations, st.booleans(), st.sampled_from(["assistant", "all"]))
def test_conversations_survive_the_disk(
    base: Path, tmp_path_factory: pytest.TempPathFactory, chats: list[list[Turn]], is_packed: bool, loss_on: str
) -> None:
    """Unicode of any kind, empty turns, several turns of one role after another."""
    flags = ["--loss-on", loss_on, "--train-split", "1", "--max-length", "500", *(["--pack"] if is_packed else [])]
    said = [
        [
            Turn(turn.role, turn.text, turn.role == "assistant" and bool(turn.text.strip()))
            for turn in chat
            if turn.text or turn.role != "system"
        ]
        for chat in chats
    ]
    encoder = ChatEncoder(load_chat_tokenizer(base / "tokenizer"), 501, loss_on=loss_on)
    wanted = [chat for chat in said if (has_answer(chat) if loss_on == "assistant" else chat)]
    expected = []
    for encoded in (piece for chat in wanted for piece in encoder.encode(chat)):
        used = int(np.flatnonzero(encoded.is_trained)[-1]) + 1
        expected.append((encoded.ids[:used].tolist(), [False, *encoded.is_trained[1:used].tolist()]))
    folder = tmp_path_factory.mktemp("round") / "d"
    try:
        build(folder, [from_turns(chat) for chat in chats], *flags, tokenizer=str(base / "tokenizer"))
    except SystemExit as refused:
        assert not expected and "No conversations left" in str(refused)
        return
    found = all_documents(open_chat_data([folder], "train")[0])
    assert sorted(found) == sorted(expected) if is_packed else found == expected


def test_packed_or_not_the_documents_are_the_same(base: Path, tmp_path: Path) -> None:
    plain = build(tmp_path / "d", make_chats(40), tokenizer=str(base / "tokenizer"))
    for split in ("train", "test"):
        packed, alone = (all_documents(open_chat_data([folder], split)[0]) for folder in (base, plain))
        assert sorted(packed) == sorted(alone)


def test_metadata_is_that_of_the_documents(base: Path) -> None:
    documents, metadata = open_chat_data([base], "train")
    ids, flags = zip(*all_documents(documents), strict=True)
    assert metadata.chat.tokens == sum(map(len, ids))
    assert metadata.chat.trained_tokens == sum(map(sum, flags))
    assert documents.lengths().tolist() == [len(document) - 1 for document in ids]
    assert metadata.seq_len == 96 and metadata.total_groups == len(documents) == metadata.chat.documents
    assert chat_splits([base]) == ["train", "test"]
    assert load_chat_tokenizer(chat_tokenizer_folder([base])).vocab_size == metadata.vocab_size


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_conversation_is_in_an_epoch_once(base: Path, num_workers: int) -> None:
    documents, metadata = open_chat_data([base], "train")
    dataset = reader(documents, metadata.pad_id)
    learnt: list[int] = []
    for _, batch, _ in DataLoader(dataset, batch_size=None, num_workers=num_workers):
        learnt += batch["labels"][batch["labels"] != -100].tolist()
    expected = [t for ids, flags in all_documents(documents) for t, flag in zip(ids, flags, strict=True) if flag]
    assert sorted(learnt) == sorted(expected)


def test_ranks_share_a_batch_and_a_run_goes_on_where_it_stopped(base: Path) -> None:
    documents, metadata = open_chat_data([base], "train")
    pad_id = metadata.pad_id
    whole = [batch["inputs"] for _, batch, _ in reader(documents, pad_id)]
    halves = [list(reader(documents, pad_id, rank=rank, world_size=2)) for rank in range(2)]
    for step, inputs in enumerate(whole):
        assert torch.equal(inputs, torch.cat([half[step][1]["inputs"] for half in halves]))
    again = reader(documents, pad_id)
    again.start_from(1, 2)
    assert all(torch.equal(a[1]["inputs"], b) for a, b in zip(again, whole[2:], strict=True))


def test_process_that_gets_the_documents_maps_the_files_itself(base: Path) -> None:
    documents, _ = open_chat_data([base], "train")
    packed = ForkingPickler.dumps(documents)
    assert len(packed) < sum((base / "train" / f"all__{name}.npy").stat().st_size for name in ("inputs", "labels")) / 2
    assert all_documents(ForkingPickler.loads(packed)) == all_documents(documents)


def test_folders_are_mixed(base: Path, tmp_path: Path) -> None:
    more = [make_chat(n + 100, 2) for n in range(10)]
    other = build(tmp_path / "d", more, "--max-length", "64", "--train-split", "1", tokenizer=str(base / "tokenizer"))
    documents, metadata = open_chat_data([base, other], "train")
    parts = [open_chat_data([folder], "train") for folder in (base, other)]
    assert all_documents(documents) == [found for part, _ in parts for found in all_documents(part)]
    assert metadata.seq_len == 96 and metadata.chat.conversations == sum(m.chat.conversations for _, m in parts)
    assert metadata.chat.max_document == max(m.chat.max_document for _, m in parts) == documents.lengths().max()
    held_out, _ = open_chat_data([base, other], "test")  # only one of them has that split
    assert len(held_out) == len(open_chat_data([base], "test")[0])


@pytest.mark.parametrize("share", ["0.8", "0"], ids=["of the same splits", "of other splits"])
def test_folders_with_different_tokenizers_are_not_mixed(base: Path, tmp_path: Path, share: str) -> None:
    other = build(tmp_path / "d", make_chats(40), "--train-split", share, tokenizer="train:300")
    with pytest.raises(ValueError, match="--tokenizer .*base"):
        open_chat_data([base, other], "train")


def test_tokenizer_is_that_of_the_data(base: Path, tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(40), tokenizer=str(base / "tokenizer"))
    (folder / "tokenizer" / ".hidden").write_text("of the system")
    open_chat_data([folder], "train")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer"):
        open_chat_data([folder], "train")


def edit(folder: Path, split: str = "train", **facts: Any) -> None:
    file = folder / split / "dataset.json"
    found = json.loads(file.read_text())
    found["chat"] |= facts
    file.write_text(json.dumps(found))


def test_shorter_rows_keep_what_is_learnt_within_them(base: Path) -> None:
    whole, before = open_chat_data([base], "train")
    cut, after = open_chat_data([base], "train", seq_len=30)
    expected = []
    for ids, flags in all_documents(whole):
        last = max((i for i in range(min(31, len(ids))) if flags[i]), default=0)
        expected += [(ids[: last + 1], flags[: last + 1])] if last else []
    assert all_documents(cut) == expected
    assert after.chat.trained_tokens == sum(sum(flags) for _, flags in expected) < before.chat.trained_tokens
    assert after.seq_len == 30 and after.chat.max_document <= 30
    assert after.chat.tokens == sum(len(ids) for ids, _ in expected)
    num_long = int((whole.lengths() > 30).sum())
    dropped = len(whole) - len(expected)
    assert after.chat.dropped - before.chat.dropped == dropped
    assert after.chat.truncated - before.chat.truncated == num_long - dropped > 0
    list(reader(cut, after.pad_id, seq_len=30))


def test_longer_rows_than_needed_are_fine(base: Path) -> None:
    documents, metadata = open_chat_data([base], "train", seq_len=200)
    assert metadata.seq_len == 200 and all_documents(documents) == all_documents(open_chat_data([base], "train")[0])


def test_damage_is_told(base: Path, tmp_path: Path) -> None:
    folder = build(tmp_path / "d", make_chats(20), "--train-split", "1", tokenizer=str(base / "tokenizer"))
    inputs, places = (folder / "train" / f"all__{name}.npy" for name in ("inputs", "places"))
    tokens, own = np.load(inputs), np.load(places)
    tokens[3, 0] = 60_000
    np.save(inputs, tokens)
    documents, _ = open_chat_data([folder], "train")
    with pytest.raises(ValueError, match=r"row 3: .*60000"):
        documents.document(3)
    np.save(places, own[:-1])
    with pytest.raises(ValueError, match="20 documents in 20 rows of 96"):
        open_chat_data([folder], "train")
    np.save(places, own + 100)
    with pytest.raises(ValueError, match="20 documents"):
        open_chat_data([folder], "train")
    places.write_bytes(b"no array")
    with pytest.raises(ValueError, match=".npy"):
        open_chat_data([folder], "train")
    places.unlink()
    with pytest.raises(ValueError, match=".npy"):
        open_chat_data([folder], "train")


def test_wrong_folder_is_told(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="python -m dataset.build_chat"):
        open_chat_data([tmp_path / "nothing"], "train")
    with pytest.raises(ValueError, match="dataset.json"):
        open_chat_data([tmp_path], "train")
    folder = build(tmp_path / "d", make_chats(9), "--train-split", "1", tokenizer=str(base / "tokenizer"))
    with pytest.raises(ValueError, match="'test'.*--train-split"):
        open_chat_data([folder], "test")
    edit(folder, format_version=9)
    with pytest.raises(ValueError, match="format_version=9"):
        open_chat_data([folder], "train")
    edit(folder, format_version=1, template="<another>")
    with pytest.raises(ValueError, match="<another>.*<.system.>"):
        open_chat_data([folder], "train")
    edit(folder, documents="many")
    with pytest.raises(ValueError, match="chat.documents"):
        open_chat_data([folder], "train")
    file = folder / "train" / "dataset.json"
    puzzles = json.loads(file.read_text())
    del puzzles["chat"]
    file.write_text(json.dumps(puzzles))
    with pytest.raises(ValueError, match="puzzles"):
        open_chat_data([folder], "train")
