from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset.common import LoaderItem
from dataset.cursor import CursorConfig, RowDataset, Stage
from dataset.text.packing import DocumentRows
from dataset.text.token_store import DocumentStore, DocumentStoreBuilder, EncodedDocuments

SEQ_LEN, VOCAB_SIZE = 12, 400


def make_store(count: int) -> DocumentStore:
    """Document i is [0, i, ..., i, i]; only the last token is trained, so that a label is an example's number."""
    builder = DocumentStoreBuilder(VOCAB_SIZE)
    for index in range(count):
        ids = np.full(3 + index % 5, index, dtype=np.int32)
        is_trained = np.zeros(len(ids), dtype=np.bool_)
        ids[0], is_trained[-1] = 0, True
        builder.extend(EncodedDocuments(ids, is_trained, np.array([len(ids)])))
    return builder.build()


def make_dataset(count: int = 23, batch: int = 4, packing: bool = True, **options: object) -> RowDataset:
    config = CursorConfig(batch, **options)  # type: ignore[arg-type]
    rows = DocumentRows(make_store(count), SEQ_LEN, pad_id=2, packing=packing)
    return RowDataset(rows, config, "test" if config.is_test else "train")


def examples(items: Iterable[LoaderItem]) -> list[int]:
    return [int(label) for _, batch, _ in items for label in batch["labels"].flatten() if label >= 0]


def assert_equal(left: list[LoaderItem], right: list[LoaderItem]) -> None:
    assert [(name, rows) for name, _, rows in left] == [(name, rows) for name, _, rows in right]
    for (_, one, _), (_, other, _) in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 7, 23, 99])
def test_a_pass_over_the_first_rows_reads_the_same_on_any_number_of_ranks(world_size: int, most: int) -> None:
    options = {"packing": False, "is_test": True, "test_rows": most, "world_size": world_size}
    ranks = [make_dataset(23, 2 * world_size, rank=rank, **options) for rank in range(world_size)]
    items = [list(rank) for rank in ranks]
    assert [len(found) for found in items] == [rank.num_batches() for rank in ranks]
    assert sorted(number for found in items for number in examples(found)) == list(range(min(most, 23)))
    assert sum(rows for _, _, rows in items[0]) == min(most, 23)


@settings(max_examples=40)
@given(
    count=st.integers(1, 60), local_batch=st.integers(1, 5), world_size=st.integers(1, 3),
    packing=st.booleans(), epochs=st.integers(1, 2), is_test=st.booleans(),
)  # fmt: skip
def test_every_example_comes_exactly_once_an_epoch(
    count: int, local_batch: int, world_size: int, packing: bool, epochs: int, is_test: bool
) -> None:
    batch = local_batch * world_size
    count = max(count, batch)
    options = {"packing": packing, "epochs_per_iter": epochs, "is_test": is_test, "world_size": world_size}
    ranks = [make_dataset(count, batch, rank=rank, **options) for rank in range(world_size)]
    items = [list(rank) for rank in ranks]
    together = [number for rank in items for number in examples(rank)]
    assert Counter(together) == Counter(list(range(count)) * (1 if is_test else epochs))
    assert {len(rank) for rank in items} == {ranks[0].num_batches()}

    whole = make_dataset(count, batch, **{**options, "world_size": 1})
    for number, (name, full, rows) in enumerate(whole):
        assert name == whole.set_name == ("test" if is_test else "train")
        for key, tensor in full.items():
            assert torch.equal(tensor, torch.cat([rank[number][1][key] for rank in items]))
        assert rows == items[0][number][2] == int((full["documents"][:, 0] == 0).sum())


def test_batches_have_the_documented_tensors() -> None:
    _, batch, rows = next(iter(make_dataset(batch=4)))
    assert rows == 4
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "inputs": torch.int32,
        "labels": torch.int32,
        "positions": torch.int32,
        "documents": torch.int32,
        "is_prompt": torch.bool,
    }
    assert all(tensor.shape == (4, SEQ_LEN) for tensor in batch.values())


def test_counts_are_those_of_what_is_there() -> None:
    dataset = make_dataset(count=23, batch=4, packing=False)
    assert (len(dataset.rows), dataset.batches_of(0)) == (23, 6)
    store = make_store(23)
    assert (len(store), len(store.tokens)) == (23, sum(3 + i % 5 for i in range(23)))
    assert len(make_dataset(count=23, packing=True).rows) < 23


def test_iterations_are_shuffled_anew_and_repeat_by_seed() -> None:
    dataset = make_dataset()
    first, second = examples(dataset), examples(dataset)
    assert first != second and sorted(first) == sorted(second)
    again = make_dataset()
    assert [examples(again), examples(again)] == [first, second]
    assert examples(make_dataset(seed=1)) != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 5, 6, 11, 12])
def test_a_run_that_is_continued_sees_what_it_had_left(done: int, workers: int) -> None:
    """12 batches an iteration, of 2 epochs."""
    whole = make_dataset(count=23, packing=False, epochs_per_iter=2)
    list(whole)
    expected, following = list(whole)[done:], list(whole)

    continued = make_dataset(count=23, packing=False, epochs_per_iter=2)
    loader = DataLoader(continued, batch_size=None, num_workers=workers)
    continued.start_from(2, done)
    assert_equal(list(loader), expected)
    if not workers:
        assert_equal(list(loader), following)
    continued.start_from(3, 0)
    assert_equal(list(loader), following)


def test_persistent_workers_go_on_and_hear_of_a_new_start() -> None:
    dataset = make_dataset()
    iterations = [list(dataset) for _ in range(3)]
    loader = DataLoader(make_dataset(), batch_size=None, num_workers=2, persistent_workers=True)
    assert_equal(list(loader), iterations[0])
    assert_equal(list(loader), iterations[1])
    loader.dataset.start_from(1, 1)
    assert_equal(list(loader), iterations[0][1:])
    assert_equal(list(loader), iterations[1])


@settings(max_examples=20)
@given(epochs=st.integers(1, 7), interval=st.integers(1, 4))
def test_an_interval_that_does_not_divide_the_epochs_changes_no_batch(epochs: int, interval: int) -> None:
    one_by_one, other = (make_dataset(epochs_per_iter=size, epochs=epochs) for size in (1, interval))
    expected = [item for _ in range(epochs) for item in one_by_one]
    iterations = [list(other) for _ in range(-(-epochs // interval))]
    assert_equal([item for items in iterations for item in items], expected)
    assert [other.num_batches(number) for number in range(1, len(iterations) + 1)] == list(map(len, iterations))


def test_spawned_workers_share_the_tokens() -> None:
    dataset = make_dataset()
    expected = list(make_dataset())
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert_equal(list(loader), expected)
    assert dataset.rows._documents.tokens.is_shared()


def test_fewer_examples_than_a_batch_are_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError) as error:
        make_dataset(count=40, batch=48)
    assert "No train batches available: 40 examples, global_batch_size=48." in str(error.value)
    assert examples(make_dataset(count=3, batch=48, is_test=True)) == [0, 1, 2]
    assert list(make_dataset(count=0, is_test=True)) == []


def test_a_batch_of_packed_rows_may_be_short() -> None:
    """Enough examples, but they fit into fewer rows than a batch has."""
    items = list(make_dataset(count=8, batch=8))
    assert len(items) == 1 and items[0][2] < 8
    assert sorted(examples(items)) == list(range(8))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch": 5, "world_size": 2}, "global_batch_size=5 cannot be shared by 2 processes"),
        ({"rank": 2, "world_size": 2}, "rank=2 with world_size=2"),
        ({"epochs_per_iter": 0}, "epochs_per_iter=0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_dataset(**options)  # type: ignore[arg-type]


def test_an_impossible_start_is_refused() -> None:
    dataset = make_dataset(count=23, packing=False)
    for iteration, batches_done, found in ((0, 0, r"\(0, 0\)"), (1, 7, "6 batches"), (1, -1, "-1")):
        with pytest.raises(ValueError, match=found):
            dataset.start_from(iteration, batches_done)
    with pytest.raises(ValueError, match="is for training"):
        make_dataset(is_test=True).start_from(1, 0)


# --- several corpora in a row


def make_stages(counts: list[int], epochs: list[int], batch: int = 4, **options: object) -> RowDataset:
    """Stage s has the examples 100 * s, 100 * s + 1, ..."""
    stores = []
    for number, count in enumerate(counts):
        builder = DocumentStoreBuilder(VOCAB_SIZE)
        for index in range(100 * number, 100 * number + count):
            ids = np.full(3 + index % 5, index, dtype=np.int32)
            builder.extend(EncodedDocuments(ids, np.arange(len(ids)) == len(ids) - 1, np.array([len(ids)])))
        stores.append(builder.build())
    rows = [DocumentRows(store, SEQ_LEN, pad_id=2) for store in stores]
    first, *later = [Stage(sum(epochs[:number]), found) for number, found in enumerate(rows)]
    return RowDataset(first.rows, CursorConfig(batch, epochs=sum(epochs), **options), "train", later)  # type: ignore[arg-type]


STAGES = st.lists(st.tuples(st.integers(4, 40), st.integers(1, 3)), min_size=1, max_size=3)


@settings(max_examples=30)
@given(stages=STAGES, epochs_per_iter=st.integers(1, 4), data=st.data())
def test_stages_follow_each_other_and_a_resume_inside_any_is_no_break(
    stages: list[tuple[int, int]], epochs_per_iter: int, data: st.DataObject
) -> None:
    counts, epochs = map(list, zip(*stages, strict=True))
    dataset = make_stages(counts, epochs, epochs_per_iter=epochs_per_iter)
    iterations = range(1, -(-sum(epochs) // epochs_per_iter) + 1)
    whole = {}
    for iteration in iterations:
        dataset.start_from(iteration, 0)
        whole[iteration] = list(dataset)
        assert len(whole[iteration]) == dataset.num_batches(iteration)
    seen = Counter(examples(item for items in whole.values() for item in items))
    assert seen == Counter({100 * n + i: epochs[n] for n, count in enumerate(counts) for i in range(count)})
    for iteration, items in whole.items():
        for number, item in enumerate(items):
            assert {example // 100 for example in examples([item])} == {dataset.stage_at(iteration, number)}
    order = [example // 100 for items in whole.values() for example in examples(items)]
    assert order == sorted(order)

    iteration = data.draw(st.sampled_from(iterations))
    skip = data.draw(st.integers(0, len(whole[iteration])))
    resumed = make_stages(counts, epochs, epochs_per_iter=epochs_per_iter)
    resumed.start_from(iteration, skip)
    assert_equal(list(resumed), whole[iteration][skip:])


def test_a_first_stage_is_what_it_is_alone() -> None:
    alone, followed = make_stages([23], [2], epochs_per_iter=5), make_stages([23, 9], [2, 1], epochs_per_iter=5)
    assert_equal(list(followed)[: alone.num_batches()], list(alone))


def test_stages_are_shared_by_workers_and_ranks() -> None:
    whole = make_stages([23, 9], [1, 2], epochs_per_iter=3)
    loaded = list(DataLoader(make_stages([23, 9], [1, 2], epochs_per_iter=3), batch_size=None, num_workers=2))
    assert_equal(loaded, list(whole))
    ranks = [make_stages([23, 9], [1, 2], epochs_per_iter=3, rank=rank, world_size=2) for rank in range(2)]
    whole = make_stages([23, 9], [1, 2], epochs_per_iter=3)
    assert sorted(e for rank in ranks for e in examples(rank)) == sorted(examples(whole))


def test_a_later_stage_that_is_too_small_is_said() -> None:
    with pytest.raises(ValueError, match="3 examples"):
        make_stages([23, 3], [1, 1])
