from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.common import IGNORE_LABEL_ID, Batch
from dataset.text.packing import NO_DOCUMENT, RowPlanner, best_fit, fill_batch
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder, EncodedDocuments

SEQ_LEN, PAD = 16, 7
Document = tuple[list[int], list[bool]]


@st.composite
def documents(draw: st.DrawFn, max_id: int = 399) -> Document:
    """Ids and trained flags as conversations have them: the first token is never trained, the last one always."""
    ids = draw(st.lists(st.integers(0, max_id), min_size=2, max_size=SEQ_LEN + 1))
    middle = draw(st.lists(st.booleans(), min_size=len(ids) - 2, max_size=len(ids) - 2))
    return ids, [False, *middle, True]


def make_store(members: list[Document], vocab_size: int = 400, chunk: int = 3) -> DocumentStore:
    builder = DocumentStoreBuilder(vocab_size)
    for start in range(0, len(members), chunk):
        ids, flags = zip(*members[start : start + chunk], strict=True)
        lengths = np.array([len(document) for document in ids], dtype=np.int64)
        builder.extend(EncodedDocuments(np.concatenate(ids).astype(np.int32), np.concatenate(flags), lengths))
    return builder.build()


def read_back(batch: Batch) -> list[Document]:
    """The documents of a batch, from nothing but its tensors; the last token is the last label."""
    found = []
    for row in range(len(batch["inputs"])):
        for number in range(int(batch["documents"][row].max()) + 1):
            here = torch.nonzero(batch["documents"][row] == number).flatten()
            labels = batch["labels"][row, here]
            ids = [*batch["inputs"][row, here].tolist(), int(labels[-1])]
            found.append((ids, [False, *(labels != IGNORE_LABEL_ID).tolist()]))
            assert here.tolist() == list(range(int(here[0]), int(here[-1]) + 1))
            assert batch["positions"][row, here].tolist() == list(range(len(here)))
    return found


@given(members=st.lists(documents(), max_size=12), chunk=st.integers(1, 5))
def test_a_store_gives_back_what_it_was_given(members: list[Document], chunk: int) -> None:
    store = make_store(members, chunk=chunk)
    assert len(store) == len(members)
    for index, (ids, flags) in enumerate(members):
        stored_ids, stored_flags = store.document(index)
        assert (stored_ids.tolist(), stored_flags.tolist()) == (ids, flags)


@pytest.mark.parametrize(("vocab_size", "bytes_a_token"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_a_token_takes_the_bytes_its_vocabulary_needs(vocab_size: int, bytes_a_token: int) -> None:
    members = [([vocab_size - 1] * 17, [False] * 16 + [True])] * 500
    store = make_store(members, vocab_size)
    assert store.document(499)[0].tolist() == members[0][0]
    size = sum(tensor.nbytes for tensor in (store.tokens, store.trained_bits, store.offsets))
    assert size <= len(store.tokens) * (bytes_a_token + 0.125) + 8 * len(members) + 9


@given(members=st.lists(documents(), max_size=30), packing=st.booleans(), epoch=st.integers(0, 3))
def test_rows_hold_every_document_once_and_whole(members: list[Document], packing: bool, epoch: int) -> None:
    store = make_store(members)
    planner = RowPlanner(store.lengths(), SEQ_LEN, packing)
    for rows in (planner.shuffled(seed=5, epoch=epoch), planner.in_order()):
        assert len(rows) == len(planner)
        batch = fill_batch(store, [rows[i] for i in range(len(rows))], len(rows), SEQ_LEN, PAD)
        key = Counter((tuple(ids), tuple(flags)) for ids, flags in members)
        assert Counter((tuple(ids), tuple(flags)) for ids, flags in read_back(batch)) == key if len(rows) else not key


@given(members=st.lists(documents(), min_size=1, max_size=20))
def test_packed_and_unpacked_rows_carry_the_same_pairs(members: list[Document]) -> None:
    """Each (input, label, position, is prompt) exactly as often."""
    store = make_store(members)
    counts = []
    for packing in (True, False):
        rows = RowPlanner(store.lengths(), SEQ_LEN, packing).in_order()
        batch = fill_batch(store, [rows[i] for i in range(len(rows))], len(rows), SEQ_LEN, PAD)
        used = batch["documents"] != NO_DOCUMENT
        columns = (batch[name][used].tolist() for name in ("inputs", "labels", "positions", "is_prompt"))
        counts.append(Counter(zip(*columns, strict=True)))
    assert counts[0] == counts[1]


@given(document=documents())
def test_labels_are_the_next_token_where_it_is_trained(document: Document) -> None:
    ids, flags = document
    batch = fill_batch(make_store([document]), [np.array([0])], 1, SEQ_LEN, PAD)
    length, first = len(ids) - 1, flags.index(True)
    assert batch["inputs"][0, :length].tolist() == ids[:-1]
    for place in range(length):
        assert batch["labels"][0, place] == (ids[place + 1] if flags[place + 1] else IGNORE_LABEL_ID)
        assert batch["is_prompt"][0, place] == (place < first)
    assert (batch["inputs"][0, length:] == PAD).all() and not batch["is_prompt"][0, length:].any()
    assert (batch["labels"][0, length:] == IGNORE_LABEL_ID).all()
    assert (batch["documents"][0, length:] == NO_DOCUMENT).all() and (batch["positions"][0, length:] == 0).all()


def test_missing_rows_are_empty() -> None:
    batch = fill_batch(make_store([([1, 5, 2], [False, True, True])]), [np.array([0])], 3, SEQ_LEN, PAD)
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(batch, (3, SEQ_LEN))
    assert (batch["labels"][1:] == IGNORE_LABEL_ID).all() and (batch["documents"][1:] == NO_DOCUMENT).all()


@given(lengths=st.lists(st.integers(1, SEQ_LEN), max_size=60))
def test_no_row_overflows_and_no_two_fit_into_one(lengths: list[int]) -> None:
    falling = np.sort(np.array(lengths, dtype=np.int64))[::-1]
    rows = best_fit(falling, SEQ_LEN)
    used = np.bincount(rows, weights=falling) if len(rows) else np.zeros(0)
    assert (used > 0).all() and (used <= SEQ_LEN).all()
    assert len(used) < 2 or np.sort(used)[:2].sum() > SEQ_LEN


def test_packing_fills_rows_well() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, size=2000)
    planner = RowPlanner(lengths, 512, packing=True)
    assert lengths.sum() / (len(planner) * 512) > 0.98


def test_epochs_differ_and_repeat_by_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, SEQ_LEN, size=200)
    planner = RowPlanner(lengths, SEQ_LEN, packing=True)
    first, again = planner.shuffled(0, 1), RowPlanner(lengths, SEQ_LEN, packing=True).shuffled(0, 1)
    np.testing.assert_array_equal(first.documents, again.documents)
    np.testing.assert_array_equal(first.starts, again.starts)
    for other in (planner.shuffled(0, 2), planner.shuffled(1, 1)):
        assert len(other) == len(first)
        assert not np.array_equal(other.documents, first.documents)
        assert {tuple(sorted(other[i])) for i in range(9)} != {tuple(sorted(first[i])) for i in range(9)}


def test_rows_in_order_are_the_documents_without_packing() -> None:
    rows = RowPlanner(np.array([3, 9, 1, 9]), SEQ_LEN, packing=False).in_order()
    assert [rows[i].tolist() for i in range(len(rows))] == [[0], [1], [2], [3]]
    packed = RowPlanner(np.array([3, 9, 1, 9]), SEQ_LEN, packing=True).in_order()
    firsts = [packed[i].min() for i in range(len(packed))]
    assert firsts == sorted(firsts)


def test_documents_longer_than_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="3 to 17 .* 16"):
        RowPlanner(np.array([3, 17]), SEQ_LEN, packing=True)


def test_rows_longer_than_all_documents_are_planned_at_once():
    lengths = np.array([3, 9, 4])
    assert len(RowPlanner(lengths, 10**23, packing=True)) == len(RowPlanner(lengths, 16, packing=True)) == 1
