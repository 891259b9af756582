"""The loader of a packed corpus: what a batch holds, every row once an epoch, resuming, refusing."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import src.distillation.corpus.parquet
from dataset.cursor import CursorConfig, RowDataset
from dataset.files.disk import file_sha256
from dataset.tokenization.lookup import open_tokenizer
from src.distillation.corpus.manifest import TokenizerFacts, load_manifest, tokenizer_facts
from src.distillation.corpus.packed_rows import PackedRows
from tests.distillation.corpus_samples import preprocess_folder, stored_rows, texts, write_jsonl, write_tokenizer

Items = list[tuple[str, dict[str, torch.Tensor], int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_jsonl(root / "raw" / "a.jsonl", [*texts(150), {"text": "long " * 60}])
    write_jsonl(root / "raw" / "b.jsonl", texts(70, start=500))
    manifest = preprocess_folder(root, "--shard-size", "3K", "--val-fraction", "0.2", "--max-seq-length", "48")
    assert len(manifest.splits["train"].shards) > 4
    return root / "packed"


def make(
    folder: Path,
    split: Any = "train",
    seq_len: int = 48,
    tokenizer: TokenizerFacts | None = None,
    verify: bool = False,
    **options: Any,
) -> RowDataset:
    rows = PackedRows(folder, split, seq_len, tokenizer, verify)
    return RowDataset(rows, CursorConfig(**{"global_batch_size": 4} | options), split)


def row_ids(items: Items) -> list[int]:
    return [row_id for _, batch, _ in items for row_id in batch["row_id"].tolist() if row_id >= 0]


def same(one: Items, other: Items) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0]
        and a[2] == b[2]
        and a[1].keys() == b[1].keys()
        and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
        for a, b in zip(one, other, strict=True)
    )


# --- what a batch holds


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_batch_holds_what_the_shards_hold(folder: Path, split: Any) -> None:
    stored = {row.row_id: row for row in stored_rows(folder) if row.split == split}
    seen = 0
    for name, batch, _ in make(folder, split=split, is_test=True):
        assert name == split
        for place, row_id in enumerate(batch["row_id"].tolist()):
            if row_id == -1:
                continue
            row, seen = stored[row_id], seen + 1
            assert batch["inputs"][place].tolist() == row.input_ids
            assert batch["labels"][place].tolist() == row.labels
            padding = [-1] * row.attention_mask.count(0)
            lengths = row.document_lengths
            documents = [number for number, length in enumerate(lengths) for _ in range(length)]
            assert batch["documents"][place].tolist() == documents + padding
            positions = [position for length in lengths for position in range(length)]
            assert batch["positions"][place].tolist() == positions + [0] * len(padding)
    assert seen == len(stored) > 0


def test_dtypes_are_those_of_the_other_loaders(folder: Path) -> None:
    _, batch, _ = next(iter(make(folder)))
    assert {name: values.dtype for name, values in batch.items()} == {
        **dict.fromkeys(("inputs", "labels", "positions", "documents"), torch.int32),
        "row_id": torch.int64,
    }


def test_rows_that_fill_up_the_last_batch_teach_nothing(folder: Path) -> None:
    dataset = make(folder, is_test=True, global_batch_size=7)
    name, batch, real = list(dataset)[-1]
    assert 0 < real == len(dataset.rows) % 7
    assert batch["row_id"][real:].tolist() == [-1] * (7 - real)
    assert (batch["labels"][real:] == -100).all() and (batch["documents"][real:] == -1).all()


def test_the_manifest_counts_what_is_there(folder: Path) -> None:
    dataset = make(folder)
    labels = sum(int((batch["labels"] != -100).sum()) for _, batch, _ in dataset)
    tokens = sum(int((batch["documents"] >= 0).sum()) for _, batch, _ in make(folder))
    facts = load_manifest(folder).splits["train"]
    assert (facts.tokens - facts.documents, facts.tokens) == (labels, tokens)
    assert dataset.batches_of(0) == len(list(make(folder)))
    assert dataset.rows.manifest == load_manifest(folder)


# --- epochs, ranks, workers, resuming


def test_every_row_exactly_once_an_epoch_and_every_epoch_anew(folder: Path) -> None:
    dataset = make(folder, seed=3)
    first, second = row_ids(list(dataset)), row_ids(list(dataset))
    expected = sorted(row.row_id for row in stored_rows(folder) if row.split == "train")
    assert sorted(first) == sorted(second) == expected
    assert first != second != expected != first
    assert row_ids(list(make(folder, seed=3))) == first
    assert row_ids(list(make(folder, seed=4))) != first


def test_train_and_val_share_no_row(folder: Path) -> None:
    train, val = (set(row_ids(list(make(folder, split=split, is_test=True)))) for split in ("train", "val"))
    assert train and val and not train & val


def test_several_epochs_an_iteration(folder: Path) -> None:
    dataset = make(folder, epochs_per_iter=3)
    assert dataset.num_batches() == 3 * make(folder).num_batches()
    assert set(Counter(row_ids(list(dataset))).values()) == {3}


def test_ranks_share_a_batch(folder: Path) -> None:
    whole = list(make(folder, global_batch_size=6))
    parts = [list(make(folder, global_batch_size=6, rank=rank, world_size=3)) for rank in range(3)]
    for number, (_, batch, real) in enumerate(whole):
        for key in batch:
            assert torch.equal(batch[key], torch.cat([part[number][1][key] for part in parts]))
        assert {part[number][2] for part in parts} == {real}


@pytest.mark.parametrize("iteration", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_resumed_run_sees_the_same_batches(folder: Path, iteration: int, done: int) -> None:
    straight = make(folder, epochs_per_iter=2)
    runs = [list(straight) for _ in range(3)]
    resumed = make(folder, epochs_per_iter=2)
    resumed.start_from(iteration, done)
    assert same(list(resumed), runs[iteration - 1][done:])
    assert same(list(resumed), runs[iteration])


def test_start_from_refuses_what_cannot_be(folder: Path) -> None:
    dataset = make(folder)
    for iteration, done in ((0, 0), (1, -1), (1, dataset.num_batches() + 1)):
        with pytest.raises(ValueError, match=r"start_from\("):
            dataset.start_from(iteration, done)
    with pytest.raises(ValueError, match="start_from"):
        make(folder, is_test=True).start_from(1, 0)


def test_loader_workers_give_the_same_batches(folder: Path) -> None:
    dataset = make(folder)
    next(iter(dataset))  # files are open when the workers are made
    dataset.start_from(1, 1)
    found = list(DataLoader(dataset, batch_size=None, num_workers=2))
    alone = make(folder)
    alone.start_from(1, 1)
    assert same(found, list(alone))


def test_little_is_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(make(folder))
    monkeypatch.setattr(src.distillation.corpus.parquet, "KEPT_GROUPS", 1)
    monkeypatch.setattr(src.distillation.corpus.parquet, "KEPT_FILES", 1)
    dataset = make(folder)
    assert same(list(dataset), expected)
    kept = [cache.cache_info().currsize for cache in (dataset.rows._files._opened, dataset.rows._files._unpacked)]
    assert kept == [1, 1]


# --- refusing


def test_another_length_or_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"48 .*1024 .*max_seq_length"):
        make(folder, seq_len=1024)
    ours = write_tokenizer(tmp_path / "ours")
    facts = tokenizer_facts(str(ours), open_tokenizer(str(ours)))
    assert make(folder, tokenizer=facts).rows.manifest.tokenizer.sha256 == facts.sha256
    other = write_tokenizer(tmp_path / "other", eos_token="<|eot|>")
    with pytest.raises(ValueError, match="tokenizer .*other"):
        make(folder, tokenizer=tokenizer_facts(str(other), open_tokenizer(str(other))))


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing"])
def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path, harm: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    make(tmp_path, verify=True)
    file = tmp_path / load_manifest(tmp_path).splits["train"].shards[1].file
    if harm == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        damaged = make(tmp_path)
        with pytest.raises(ValueError, match=f"{file.name} .*SHA-256"):  # when the shard is opened first
            list(damaged)
    elif harm == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} .*a.jsonl"):
        make(tmp_path, verify=True)


def test_a_shard_is_checked_once_however_often_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = src.distillation.corpus.parquet.file_sha256
    counted = lambda path: hashed.append(path.name) or sha256(path)  # noqa: E731
    monkeypatch.setattr(src.distillation.corpus.parquet, "file_sha256", counted)
    monkeypatch.setattr(src.distillation.corpus.parquet, "KEPT_FILES", 1)
    rows = make(folder)
    for _ in range(2):
        list(rows)
    assert sorted(hashed) == sorted(Path(s.file).name for s in load_manifest(folder).splits["train"].shards)


def rewritten(folder: Path, target: Path, change: Any) -> tuple[Path, int]:
    """A copy of the corpus with a changed second shard, which the manifest vouches for, and its first row's number."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][1]
    file = target / shard["file"]
    table = parquet.read_table(file)
    columns = table.to_pydict()
    change(columns)
    parquet.write_table(pa.Table.from_pydict(columns, schema=table.schema), file)
    shard |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return file, shard["first_row_id"]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.one_of(st.integers(-(2**31), -1), st.integers(5_000, 2**31 - 1)), place=st.integers(0, 47))
def test_ids_outside_the_vocabulary_are_refused_with_shard_and_row(folder: Path, value: int, place: int) -> None:
    with TemporaryDirectory() as temporary:

        def change(columns: dict[str, Any]) -> None:
            columns["input_ids"][0][place] = value

        file, row = rewritten(folder, Path(temporary) / "packed", change)
        with pytest.raises(ValueError, match=rf"{file.name} .*row {row} .*{value}"):
            list(make(Path(temporary) / "packed"))


@pytest.mark.parametrize("lengths", [[], [49], [20, 29], [-1, 5]])
def test_documents_that_no_row_holds_are_refused(folder: Path, tmp_path: Path, lengths: list[int]) -> None:
    file, row = rewritten(
        folder, tmp_path / "packed", lambda columns: columns["document_lengths"].__setitem__(0, lengths)
    )
    with pytest.raises(ValueError, match=rf"{file.name} .*row {row} "):
        list(make(tmp_path / "packed"))


def test_new_shards_have_page_checksums(folder: Path) -> None:
    """A bit that flips after a shard was checked."""
    import pyarrow.parquet as parquet

    file = folder / load_manifest(folder).splits["train"].shards[0].file
    column = parquet.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema.startswith("input_ids")
    rows = make(folder)
    rows.rows.batch([0], 1)
    rows.rows._files._unpacked.cache_clear()
    sound = file.read_bytes()
    try:
        with open(file, "r+b") as harmed:
            harmed.seek(column.data_page_offset + column.total_compressed_size - 2)
            harmed.write(bytes([sound[harmed.tell()] ^ 4]))
        with pytest.raises(ValueError, match=file.name):
            rows.rows.batch([0], 1)
    finally:
        file.write_bytes(sound)


def test_a_folder_without_a_corpus_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest.json.*preprocess_to_parquet.py"):
        make(tmp_path)


def test_too_few_rows_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="global_batch_size=4096"):
        make(folder, global_batch_size=4096)
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(20))
    preprocess_folder(tmp_path, "--val-fraction", "0")
    with pytest.raises(ValueError, match="--val-fraction"):
        make(tmp_path / "packed", split="val", seq_len=64, is_test=True)
    for options, words in (({"global_batch_size": 5, "world_size": 2}, "shared by 2"), ({"rank": 1}, "ranks count")):
        with pytest.raises(ValueError, match=words):
            make(folder, **options)


def test_a_longer_corpus_keeps_the_numbers_and_contents_of_its_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw" / "b.jsonl", texts(40))
    preprocess_folder(tmp_path)
    before = {row.row_id: row.input_ids for row in stored_rows(tmp_path / "packed")}
    write_jsonl(tmp_path / "raw" / "a.jsonl", texts(40, start=900))
    preprocess_folder(tmp_path, "--skip-existing")
    after = {row.row_id: row.input_ids for row in stored_rows(tmp_path / "packed")}
    assert before.items() < after.items()
    assert all(np.diff(sorted(after)) == 1)
