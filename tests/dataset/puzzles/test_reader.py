"""Batches: as the reference's where it is deterministic, the same on every rank, resumable at any batch."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset.common import IGNORE_LABEL_ID, LoaderItem
from dataset.puzzles.format import open_split
from dataset.puzzles.reader import PuzzleDataset, PuzzleDatasetConfig
from tests.dataset.puzzle_samples import (
    open_dataset,
    parity_arrays,
    parity_json,
    write_parity_dataset,
    write_small_dataset,
)

RUNS = parity_json("puzzle_dataset")["runs"]


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity_dataset(tmp_path_factory.mktemp("parity") / "arc", "arc/default")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("small") / "small", ((2, 3), (1,), (4, 1, 2), (3,)))


def rows(items: list[LoaderItem]) -> list[tuple[str, list[list[int]], int]]:
    return [(name, batch["inputs"].tolist(), size) for name, batch, size in items]


def open_run(arc: Path, run: dict[str, Any], rank: int) -> PuzzleDataset:
    keys = ("seed", "global_batch_size", "test_set_mode", "epochs_per_iter")
    return open_dataset(
        arc, split=run["split"], rank=rank, num_replicas=run["world_size"], **{key: run[key] for key in keys}
    )


@pytest.mark.parametrize("run", RUNS, ids=[run["tag"] for run in RUNS])
def test_batches_equal_the_reference(arc: Path, run: dict[str, Any]) -> None:
    golden = parity_arrays("puzzle_dataset")
    stored = np.load(arc / run["split"] / "all__inputs.npy")
    for rank in range(run["world_size"]):
        data = open_run(arc, run, rank)
        assert data.metadata.model_dump() == run["metadata"]
        iterations = [list(data) for _ in range(run["iterations"])]
        items = [item for iteration in iterations for item in iteration]

        wanted = {key: golden[f"{run['tag']}/rank{rank}/{key}"] for key in ("iter", "global_size", "rows")}
        assert [number for number, iteration in enumerate(iterations) for _ in iteration] == wanted["iter"].tolist()
        assert [size for _, _, size in items] == wanted["global_size"].tolist()
        identifiers = np.stack([batch["puzzle_identifiers"].numpy() for _, batch, _ in items])
        np.testing.assert_array_equal(identifiers, golden[f"{run['tag']}/rank{rank}/puzzle_identifiers"])
        if run["split"] == "test":
            expected = np.where(wanted["rows"][..., None] < 0, 0, stored[wanted["rows"]])
            np.testing.assert_array_equal(np.stack([batch["inputs"].numpy() for _, batch, _ in items]), expected)


def test_rows_come_from_the_puzzle_they_are_labelled_with(small: Path) -> None:
    for _, batch, _ in open_dataset(small, epochs_per_iter=5):
        assert torch.equal(batch["inputs"][:, 2], batch["puzzle_identifiers"])
        stored_labels = batch["inputs"][:, :1] % 3
        assert torch.equal(
            batch["labels"], torch.where(stored_labels == 0, IGNORE_LABEL_ID, stored_labels).expand(-1, 3)
        )
        assert {value.dtype for value in batch.values()} == {torch.int32}


def test_puzzle_that_fits_is_taken_whole_and_shuffled(tmp_path: Path) -> None:
    data = open_dataset(write_small_dataset(tmp_path / "d", ((8,),)), global_batch_size=8)
    orders = [batch["inputs"][:, 0].tolist() for _ in range(4) for _, batch, _ in data]
    assert [sorted(order) for order in orders] == [list(range(8))] * 4
    assert len({tuple(order) for order in orders}) == 4


def test_order_depends_on_the_seed_and_not_on_global_numpy_state(small: Path) -> None:
    first = rows(list(open_dataset(small, seed=3)))
    np.random.seed(99)
    assert rows(list(open_dataset(small, seed=3))) == first
    assert rows(list(open_dataset(small, seed=4))) != first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(seed=st.integers(0, 1000), local=st.integers(1, 3), ranks=st.sampled_from([2, 3, 4]), split=st.booleans())
def test_union_of_the_ranks_is_the_batch_of_one_rank(
    small: Path, seed: int, local: int, ranks: int, split: bool
) -> None:
    config = {"seed": seed, "global_batch_size": local * ranks, "epochs_per_iter": 3}
    name = "test" if split else "train"
    alone = list(open_dataset(small, split=name, **config))
    shared = [list(open_dataset(small, split=name, rank=rank, num_replicas=ranks, **config)) for rank in range(ranks)]
    assert alone
    for (_, whole, size), *parts in zip(alone, *shared, strict=True):
        assert {part[2] for part in parts} == {size}
        for key, value in whole.items():
            assert torch.equal(torch.cat([part[1][key] for part in parts]), value)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_ranks_see_every_example_of_arc_as_one_rank_does(arc: Path, split: str, ranks: int) -> None:
    """Groups of a puzzle and its copies, of several examples each, as the builder writes them."""
    stored = open_split(arc, split).sets["all"]
    assert np.diff(stored.group_indices).max() > 1 and np.diff(stored.puzzle_indices).max() > 1

    def seen(num_replicas: int) -> list[list[int]]:
        settings = {"global_batch_size": 8, "epochs_per_iter": 2, "num_replicas": num_replicas}
        readers = [open_dataset(arc, split=split, rank=rank, **settings) for rank in range(num_replicas)]
        examples = [
            [int(identifier), *row]
            for reader in readers
            for _ in range(2)  # the second time is another iteration
            for _, batch, _ in reader
            for identifier, row in zip(batch["puzzle_identifiers"], batch["inputs"].tolist(), strict=True)
        ]
        return sorted(example for example in examples if any(example))

    assert seen(ranks) == seen(1)
    if split == "test":
        assert len(seen(ranks)) == 2 * stored.num_examples


@pytest.mark.parametrize(("iteration", "done"), [(1, 0), (1, 2), (2, 1), (3, 0)])
def test_start_from_equals_skipping(small: Path, iteration: int, done: int) -> None:
    whole, resumed = (open_dataset(small, epochs_per_iter=4, seed=5) for _ in range(2))
    iterations = [rows(list(whole)) for _ in range(4)]
    resumed.start_from(iteration, done)
    assert rows(list(resumed)) == iterations[iteration - 1][done:]
    assert rows(list(resumed)) == iterations[iteration]


def test_start_from_after_the_last_batch_yields_nothing_and_then_goes_on(small: Path) -> None:
    data = open_dataset(small, epochs_per_iter=4)
    count = data.num_batches(1)
    data.start_from(1, count)
    assert list(data) == []
    assert len(list(data)) == data.num_batches(2)


def test_start_from_does_not_read_the_skipped_rows(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(small, epochs_per_iter=4)
    read: list[int] = []
    collate = data._batch
    monkeypatch.setattr(data, "_batch", lambda *args: read.append(1) or collate(*args))
    data.start_from(1, data.num_batches(1) - 1)
    assert len(list(data)) == len(read) == 1


def test_start_from_refuses_what_cannot_be(small: Path) -> None:
    data = open_dataset(small)
    with pytest.raises(ValueError, match="iterations count from 1"):
        data.start_from(0, 0)
    with pytest.raises(ValueError, match="start_from"):
        open_dataset(small, split="test").start_from(1, 0)
    data.start_from(1, 50)
    with pytest.raises(ValueError, match="Cannot skip 50 batches of iteration 1, it has"):
        list(data)


def test_several_sets_have_streams_of_their_own(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "d", ((1,),) * 12, sets=("easy", "hard"))
    items = list(open_dataset(folder))
    assert [name for name, _, _ in items] == ["easy"] * 3 + ["hard"] * 3
    order = [batch["inputs"][:, 0].tolist() for _, batch, _ in items]
    assert order[:3] != order[3:]
    resumed = open_dataset(folder)
    resumed.start_from(1, 4)
    assert rows(list(resumed)) == rows(items)[4:]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_loader_workers_keep_the_order(small: Path, workers: int, split: str) -> None:
    def make() -> PuzzleDataset:
        return open_dataset(small, split=split, epochs_per_iter=4, global_batch_size=2)

    plain = make()
    loader = DataLoader(make(), batch_size=None, num_workers=workers, persistent_workers=True)
    for _ in range(2):
        assert rows(list(loader)) == rows(list(plain))


def test_start_from_reaches_running_workers(small: Path) -> None:
    data, plain = (open_dataset(small, epochs_per_iter=4) for _ in range(2))
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    first = rows(list(loader))
    data.start_from(1, 1)
    assert rows(list(loader)) == first[1:]
    plain.start_from(2, 0)
    assert rows(list(loader)) == rows(list(plain))


def test_pickled_dataset_carries_no_arrays(tmp_path: Path) -> None:
    few, many = (open_dataset(write_small_dataset(tmp_path / f"{n:03}", ((n,),) * 2)) for n in (4, 90))
    assert abs(len(pickle.dumps(few)) - len(pickle.dumps(many))) < 100
    assert rows(list(deepcopy(many))) == rows(list(many))


def test_num_batches_is_what_is_yielded(small: Path) -> None:
    data = open_dataset(small, epochs_per_iter=3)
    assert [data.num_batches(number) for number in (1, 2, 3)] == [len(list(data)) for _ in range(3)]
    test = open_dataset(small, split="test", global_batch_size=5)
    assert test.num_batches() == len(list(test)) == 4


def test_short_test_batch_is_padded(small: Path) -> None:
    *_, (_, batch, size) = open_dataset(small, split="test", global_batch_size=10)
    assert size == 6
    assert batch["inputs"][6:].eq(0).all() and batch["puzzle_identifiers"][6:].eq(0).all()
    assert batch["labels"][6:].eq(IGNORE_LABEL_ID).all()


# --- several data sets ---


def test_mixed_sets_get_names_and_identifiers_of_their_own(tmp_path: Path) -> None:
    one = write_small_dataset(tmp_path / "one", ((2,), (2,)))
    two = write_small_dataset(tmp_path / "two", ((2,), (2,), (2,)))
    data = open_dataset(one, two, split="test", global_batch_size=6)
    assert data.metadata.sets == ["all@one", "all@two"]
    assert data.metadata.num_puzzle_identifiers == 6
    assert (data.metadata.total_groups, data.metadata.total_puzzles, data.metadata.mean_puzzle_examples) == (5, 5, 2.0)
    seen = {name: batch["puzzle_identifiers"].unique().tolist() for name, batch, _ in data}
    assert seen["all@one"][-2:] == [1, 2] and seen["all@two"] == [3, 4, 5]


def test_sets_that_differ_in_name_keep_it(tmp_path: Path) -> None:
    one = write_small_dataset(tmp_path / "one", sets=("easy",))
    two = write_small_dataset(tmp_path / "two", sets=("hard",))
    assert open_dataset(one, two).metadata.sets == ["easy", "hard"]


def test_folders_of_one_name_still_give_distinct_sets(tmp_path: Path) -> None:
    folders = [write_small_dataset(tmp_path / parent / "same") for parent in ("a", "b", "c")]
    assert open_dataset(*folders).metadata.sets == ["all@same", "all@same#2", "all@same#3"]


def test_identifiers_that_do_not_collide_stay(tmp_path: Path) -> None:
    one = write_small_dataset(tmp_path / "one", ((1,),) * 4)
    two = write_small_dataset(tmp_path / "two", ((1,),) * 4, first_identifier=10)
    items = list(open_dataset(one, two, split="test"))
    assert [batch["puzzle_identifiers"].tolist() for _, batch, _ in items] == [[1, 2, 3, 4], [10, 11, 12, 13]]


def test_blank_identifiers_are_shared(tmp_path: Path) -> None:
    folders = [write_small_dataset(tmp_path / name, ((1,),) * 4, first_identifier=None) for name in "ab"]
    data = open_dataset(*folders)
    assert data.metadata.num_puzzle_identifiers == 1
    assert all(batch["puzzle_identifiers"].eq(0).all() for _, batch, _ in data)


def test_blank_identifier_is_not_moved(tmp_path: Path) -> None:
    one, two = (write_small_dataset(tmp_path / name, ((1,),) * 4) for name in ("one", "two"))
    file = two / "test" / "all__puzzle_identifiers.npy"
    np.save(file, np.load(file) * [0, 1, 1, 0])
    items = list(open_dataset(one, two, split="test"))
    assert [batch["puzzle_identifiers"].tolist() for _, batch, _ in items] == [[1, 2, 3, 4], [0, 6, 7, 0]]


def test_part_of_the_training_sets_is_tested_under_its_training_identifiers(tmp_path: Path) -> None:
    one, two = (write_small_dataset(tmp_path / name, ((1,),) * 4) for name in ("one", "two"))
    both = [str(one), str(two)]
    data = open_dataset(two, split="test", identifier_paths=both)
    assert [batch["puzzle_identifiers"].tolist() for _, batch, _ in data] == [[5, 6, 7, 8]]
    assert data.metadata.num_puzzle_identifiers == 9


def test_data_sets_that_cannot_be_mixed_are_one_error(tmp_path: Path) -> None:
    one = write_small_dataset(tmp_path / "one")
    two = write_small_dataset(tmp_path / "two", vocab_size=201, ignore_label_id=None)
    with pytest.raises(ValueError) as error:
        open_dataset(one, two)
    for part in (str(one), str(two), "vocab_size=200 and 201", "ignore_label_id=0 and None"):
        assert part in str(error.value)
    assert "seq_len" not in str(error.value)


# --- refusals ---


def test_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "d", ((1,),) * 40)
    with pytest.raises(
        ValueError, match=r"No train batches available: 40 examples, global_batch_size=48.*Lower the batch"
    ):
        open_dataset(folder, global_batch_size=48)
    assert len(list(open_dataset(folder, global_batch_size=48, epochs_per_iter=2))) == 1
    assert len(list(open_dataset(folder, global_batch_size=48, split="test"))) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_batch_size": 5, "num_replicas": 2}, "global_batch_size=5.* 2 "),
        ({"rank": 2, "num_replicas": 2}, "rank=2 with num_replicas=2"),
        ({"identifier_paths": ["elsewhere"]}, "identifier_paths"),
        ({"sed": 1}, "sed"),
    ],
)
def test_bad_settings_are_refused(small: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(small, **config)


def test_data_set_named_twice_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="named twice"):
        PuzzleDatasetConfig(dataset_paths=[str(small)] * 2, global_batch_size=1, test_set_mode=False)
