"""Tokenizers of a corpus: what names and files they are opened from, and which of them are the same."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from dataset.text.sample_corpus import train_tokenizer
from dataset.tokenization.lookup import open_tokenizer
from src.distillation.corpus.manifest import tokenizer_facts
from tests.dataset.instruct_samples import WORDING
from tests.dataset.tokenizer_samples import make_byte_level, stub_downloads
from tests.distillation.corpus_samples import write_tokenizer


def fingerprint(path: Path) -> str:
    return tokenizer_facts(str(path), open_tokenizer(str(path))).sha256


def test_names_of_special_tokens_come_from_the_configuration(tmp_path: Path) -> None:
    plain = open_tokenizer(str(write_tokenizer(tmp_path / "plain")))
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (256, 257, 257)
    names = {"bos_token": None, "eos_token": {"content": "<|eot|>"}, "pad_token": "<s>"}
    told = open_tokenizer(str(write_tokenizer(tmp_path / "told", **names)))
    assert (told.bos_id, told.eos_id, told.pad_id) == (None, 258, 256)


def test_a_tokenizer_that_does_not_know_the_end_of_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(make_byte_level(size=270)))
    with pytest.raises(ValueError, match="eos_token"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


def test_bytes_and_texts_of_ids(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(write_tokenizer(tmp_path)))
    text = "a é \n 日本 <s>"
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode([256, *ids, 257]) == text
    assert b"".join(tokenizer.piece_bytes(index) for index in (256, *ids, 257)) == text.encode()


def test_the_fingerprint_is_of_the_pieces_and_the_marks(tmp_path: Path) -> None:
    one = write_tokenizer(tmp_path / "one")
    copy = write_tokenizer(
        tmp_path / "copy", tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", bos_token="<s>"
    )
    (copy / "tokenizer.json").write_text(json.dumps(json.loads((copy / "tokenizer.json").read_text()), indent=1))
    other = write_tokenizer(tmp_path / "other", eos_token="<|eot|>", bos_token="<s>")
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "tokenizer.json").write_text(json.dumps(make_byte_level(added=("<s>", "</s>"))))
    assert fingerprint(one) == fingerprint(copy) == fingerprint(one / "tokenizer.json")
    assert len({fingerprint(one), fingerprint(other), fingerprint(larger)}) == 3


def test_sentencepiece_models_are_opened_by_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_tokenizer(WORDING, vocab_size=400))
    by_file, by_folder = tokenizer_facts("x", open_tokenizer(str(tmp_path / "tokenizer.model"))), fingerprint(tmp_path)
    assert by_file.vocab_size == 400
    assert by_file.sha256 == by_folder


def test_other_names_are_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = write_tokenizer(tmp_path / "held")
    repository = stub_downloads(monkeypatch, held)
    facts = tokenizer_facts("ann/small", open_tokenizer("ann/small"))
    assert (facts.name, facts.sha256) == ("ann/small", fingerprint(held))
    assert repository == ["tokenizer.json", "tokenizer_config.json"]

    (held / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="ann/small.*tokenizer.json"):
        open_tokenizer("ann/small")

    stub_downloads(monkeypatch, None)
    with pytest.raises(ValueError, match=r"nobody answers.*hf download ann/small"):
        open_tokenizer("ann/small")


@pytest.mark.parametrize("name", ["no/such/folder", "absent/tokenizer.json", "../x", ""])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=r"tokenizer.json"):
        open_tokenizer(name)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "a", eos_token="</s>")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json"):
        open_tokenizer(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a/tokenizer.json"):
        open_tokenizer(str(folder))
