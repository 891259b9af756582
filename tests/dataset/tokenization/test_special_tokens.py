import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.tokenization.protocol import StreamDecoder
from dataset.tokenization.special_tokens import SPECIAL_TOKENS, ChatTokenizer, load_chat_tokenizer, open_chat_tokenizer
from tests.dataset.instruct_samples import WORDING
from tests.dataset.tokenizer_samples import llama_style, make_byte_level, stub_downloads

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PARTS = [
    "<|user|>",
    "<|endoftext|>",
    "</s>",
    "<mask>",
    " ",
    "  ",
    "\n",
    "\0",
    "▁",
    "a",
    "é",
    "e\u0301",
    "👍🏽",
    "<0x41>",
]
TRICKY = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def wording() -> Iterable[str]:
    return iter(WORDING)


@pytest.fixture(scope="module", params=["byte level", "llama", "llama, metaspace", "sentencepiece"])
def chat_tokenizer(
    request: pytest.FixtureRequest, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> ChatTokenizer:
    if request.param == "sentencepiece":
        return open_chat_tokenizer(str(tokenizer_path))
    if request.param == "byte level":
        content = make_byte_level(added=("</s>", "<mask>"))
    else:
        content = llama_style(is_metaspace=request.param == "llama, metaspace")
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    path.write_text(json.dumps(content))
    return open_chat_tokenizer(str(path))


def test_nine_special_tokens_have_ids_of_their_own(chat_tokenizer: ChatTokenizer) -> None:
    ids = [chat_tokenizer.special(name) for name in SPECIAL_TOKENS]
    assert len(set(ids)) == 9 and max(ids) == chat_tokenizer.vocab_size - 1
    assert chat_tokenizer.eos_id == chat_tokenizer.special("<|endoftext|>")
    assert chat_tokenizer.pad_id == chat_tokenizer.special("<|pad|>")
    assert {chat_tokenizer.piece_bytes(index) for index in ids} == {b""}
    assert chat_tokenizer.decode(ids) == ""


@given(text=UNICODE | TRICKY)
def test_text_survives_the_round_trip(chat_tokenizer: ChatTokenizer, text: str) -> None:
    expected = text.replace("▁", " ") if chat_tokenizer.has_space_prefix else text
    ids = chat_tokenizer.encode(text)
    assert chat_tokenizer.decode(ids) == expected
    stream = StreamDecoder(chat_tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == expected
    prefix = 1 if text and chat_tokenizer.has_space_prefix else 0
    assert sum(len(chat_tokenizer.piece_bytes(token_id)) for token_id in ids) == len(expected.encode()) + prefix


@given(texts=st.lists(UNICODE | TRICKY, max_size=4))
def test_a_batch_is_encoded_as_its_texts_are(chat_tokenizer: ChatTokenizer, texts: list[str]) -> None:
    assert [ids.tolist() for ids in chat_tokenizer.encode_batch(texts)] == [chat_tokenizer.encode(t) for t in texts]


@given(before=TRICKY, after=TRICKY)
def test_no_text_makes_a_special_token(chat_tokenizer: ChatTokenizer, before: str, after: str) -> None:
    text = f"{before}{''.join(SPECIAL_TOKENS)} {' '.join(SPECIAL_TOKENS)}</s><mask><s>{after}"
    unseen = {index for index in range(chat_tokenizer.vocab_size) if chat_tokenizer.piece_bytes(index) == b""}
    assert unseen >= set(chat_tokenizer.special_ids.values())
    assert not unseen & set(chat_tokenizer.encode(text))


def test_a_copy_for_another_process_makes_no_special_tokens_either(chat_tokenizer: ChatTokenizer) -> None:
    text = "".join(SPECIAL_TOKENS) + "</s><mask>"
    assert pickle.loads(pickle.dumps(chat_tokenizer)).encode(text) == chat_tokenizer.encode(text)  # noqa: S301


@pytest.mark.parametrize("way", ["save", "files"])
def test_what_is_put_in_a_folder_is_the_same_tokenizer(chat_tokenizer: ChatTokenizer, tmp_path: Path, way: str) -> None:
    if way == "save":
        chat_tokenizer.save(tmp_path)
    for file in chat_tokenizer.files():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = load_chat_tokenizer(tmp_path)
    assert loaded.special_ids == chat_tokenizer.special_ids and loaded.vocab_size == chat_tokenizer.vocab_size
    for text in (*WORDING, *PARTS, "".join(SPECIAL_TOKENS)):
        assert loaded.encode(text) == chat_tokenizer.encode(text)
    assert [file.parent for file in loaded.files()] == [tmp_path]


def test_another_tokenizer_in_the_folder_is_not_hidden(chat_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="holds another tokenizer, tokenizer.(model|json)"):
        chat_tokenizer.save(tmp_path)


def test_half_a_surrogate_pair_and_foreign_ids_are_refused(chat_tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        chat_tokenizer.encode_batch(["fine", "a\ud800"])
    with pytest.raises(ValueError, match="99999999"):
        chat_tokenizer.decode([1, 99999999])


def test_a_sentencepiece_model_keeps_its_ids(tokenizer: Any, tokenizer_path: Path) -> None:
    for name in (tokenizer_path, tokenizer_path.parent):
        opened = open_chat_tokenizer(str(name))
        assert [opened.special(name) for name in SPECIAL_TOKENS] == [*range(tokenizer.vocab_size, opened.vocab_size)]
        assert opened.encode("Paris.") == tokenizer.encode("Paris.")


def test_a_tokenizer_of_the_asked_size_is_trained() -> None:
    tokenizer = open_chat_tokenizer("train:300", texts=wording)
    assert tokenizer.vocab_size == 300
    assert tokenizer.special("<|user|>") == 291
    assert len(tokenizer.encode("the answer")) < len("the answer")


def test_training_is_deterministic(tmp_path: Path) -> None:
    for run in ("one", "two"):
        open_chat_tokenizer("train:340", texts=wording).save(tmp_path / run)
    one, two = ((tmp_path / run / "tokenizer.json").read_bytes() for run in ("one", "two"))
    assert one == two


def test_a_text_too_short_for_the_size_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = open_chat_tokenizer("train:5000", texts=lambda: ["aa aa"])
    assert f"train:5000 gave {tokenizer.vocab_size} tokens" in capsys.readouterr().err
    assert tokenizer.decode(tokenizer.encode("Zoë\n")) == "Zoë\n"


@pytest.mark.parametrize(
    ("name", "texts", "problem"),
    [
        ("train:264", wording, "Found train:264, expected .* from 265"),
        ("train:", wording, "Found train:, expected"),
        ("train:8k", wording, "Found train:8k, expected"),
        ("train:99999999999", wording, "to 1000000"),
        ("train:300", None, "train:300 trains a tokenizer on texts, but there are none"),
        ("train:300", lambda: ["a\ud800"], "surrogate"),
    ],
)
def test_what_is_wrong_with_training_is_said(
    name: str, texts: Callable[[], Iterable[str]] | None, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        open_chat_tokenizer(name, texts=texts)


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "gone/tokenizer.json", "gone.model", "", "../up", "a/.."])
def test_a_missing_path_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stub_downloads(monkeypatch, None)
    with pytest.raises(ValueError, match=r"train:SIZE.*tokenizer.json"):
        open_chat_tokenizer(name)
    assert not asked


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    with pytest.raises(ValueError, match=r"found data.txt.*train:SIZE"):
        open_chat_tokenizer(str(tmp_path))
    (tmp_path / "vocab.json").touch()
    with pytest.raises(ValueError, match=r"found data.txt, vocab.json.*train:SIZE"):
        open_chat_tokenizer(str(tmp_path))


def test_a_name_of_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(make_byte_level(added=("<|endoftext|>",))))
    (tmp_path / "tokenizer.model").write_bytes(b"not needed")
    stub_downloads(monkeypatch, tmp_path)
    tokenizer = open_chat_tokenizer("EleutherAI/gpt-neo-125M")
    assert tokenizer.encode("Paris") == load_chat_tokenizer(tmp_path / "tokenizer.json").encode("Paris")


def test_a_repository_with_vocabulary_and_merges_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_byte_level()
    vocab = content["model"]["vocab"]
    vocab |= {"</s>": len(vocab), "<pad>": len(vocab) + 1}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    asked = stub_downloads(monkeypatch, tmp_path)
    tokenizer = open_chat_tokenizer("facebook/opt-125m")
    assert asked == ["tokenizer.json", "vocab.json", "merges.txt"]
    assert tokenizer.special("<|user|>") == len(vocab)
    assert tokenizer.piece_bytes(vocab["</s>"]) == b"" and vocab["</s>"] not in tokenizer.encode("</s>")
    assert tokenizer.decode(tokenizer.encode("The answer is 47. </s>")) == "The answer is 47. </s>"


def test_a_repository_with_a_sentencepiece_model_is_fetched(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_downloads(monkeypatch, tokenizer_path.parent)
    assert open_chat_tokenizer("some/llama").files() == [tokenizer_path]


@pytest.mark.parametrize("fault", ["empty", "away"])
def test_without_the_hub_the_error_says_what_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    stub_downloads(monkeypatch, tmp_path if fault == "empty" else None)
    reason = {"empty": "tokenizer.json.*vocab.json", "away": "nobody answers"}
    with pytest.raises(ValueError, match=rf"gpt2.*{reason[fault]}") as error:
        open_chat_tokenizer("gpt2")
    for choice in ("train:SIZE", "tokenizer.json", "merges.txt", "SentencePiece model"):
        assert choice in str(error.value)
