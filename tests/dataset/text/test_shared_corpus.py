"""Tests of a corpus in files: mapped by any process, it is the one that memory holds."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.text.shared_corpus import described, map_corpus
from dataset.text.slimorca import InstructCorpus, SlimOrcaConfig, load_corpus
from dataset.text.token_store import DocumentStore
from tests.dataset.instruct_samples import make_lines, make_record


def assert_same(one: InstructCorpus, other: InstructCorpus) -> None:
    for split in ("train", "test"):
        first, second = getattr(one, split), getattr(other, split)
        assert isinstance(second, DocumentStore) and len(first) == len(second)
        for name in vars(first):
            assert torch.equal(getattr(first, name), getattr(second, name))
            assert getattr(first, name).dtype == getattr(second, name).dtype
    assert (one.stages, one.test_sets, one.report.splits) == (other.stages, other.test_sets, other.report.splits)
    assert one.tokenizer.files() == other.tokenizer.files()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 60), seed=st.integers(0, 9), test_ratio=st.sampled_from([0.0, 0.3]))
def test_a_mapped_corpus_is_the_one_in_memory(
    tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, test_ratio: float
) -> None:
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("scratch")
    lines = [*make_lines(count), json.dumps(make_record("no answer", ""))]
    (data / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = SlimOrcaConfig(data_dir=data, seq_len=64, subset_size=None, test_ratio=test_ratio, seed=seed)
    in_memory = load_corpus(config, tokenizer_path, progress=False)
    in_files = load_corpus(config, tokenizer_path, progress=False, folder=folder)
    mapped = map_corpus(described(in_files, folder))
    for file in folder.rglob("*.bin"):  # what is mapped stays
        file.unlink()
    assert_same(in_memory, in_files)
    assert_same(in_files, mapped)
    assert mapped.report == in_files.report


def test_no_room_names_where_to_find_some(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in make_lines(20)))
    (full := tmp_path / "full").mkdir()
    monkeypatch.setattr("dataset.text.token_store.TOKENS_FILE", "/dev/full")
    with pytest.raises(ValueError, match=r"disk is full.*TMPDIR"):
        load_corpus(SlimOrcaConfig(data_dir=tmp_path), tokenizer_path, progress=False, folder=full)
