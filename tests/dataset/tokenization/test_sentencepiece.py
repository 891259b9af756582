import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

import dataset.tokenization.sentencepiece
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import StreamDecoder
from dataset.tokenization.sentencepiece import SentencePieceTokenizer
from tests.dataset.instruct_samples import WORDING, FakeHub

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SPACED = st.text("ab \u2581\n\t[USER]</s>é字", max_size=40)  # spaces in every form, and markers


def train(**options: object) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "allow_whitespace_only_pieces": True,
        "vocab_size": 320,
        "byte_fallback": True,
        "minloglevel": 2,
        "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(WORDING), model_writer=model, **settings | options)
    return model.getvalue()


@pytest.fixture(
    scope="module",
    params=["normalising", "normalising, all spaces", "unigram", "without space prefix", "unigram, identity"],
)
def other_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    """Tokenizers whose rules differ from LLaMA's."""
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options = {
        "normalising": {},
        "normalising, all spaces": {"remove_extra_whitespaces": False},
        "unigram": {"model_type": "unigram"},
        "without space prefix": {**identity, "add_dummy_prefix": False},
        "unigram, identity": {**identity, "model_type": "unigram"},
    }
    path = tmp_path_factory.mktemp("other") / "other.model"
    path.write_bytes(train(**options[request.param]))
    return SentencePieceTokenizer(path)


def test_ids_have_llamas_layout(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.decode([1, *tokenizer.encode("Paris."), 2]) == "Paris."


@given(text=UNICODE)
def test_text_survives_the_round_trip(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


@given(texts=st.lists(UNICODE | SPACED, max_size=5))
@example(texts=["a\u2581\u2581\u2581 b", "a \u2581\u2581\u2581b"])
def test_a_batch_is_encoded_as_its_texts_are(tokenizer: SentencePieceTokenizer, texts: list[str]) -> None:
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


@given(texts=st.lists(UNICODE | SPACED, max_size=5))
def test_a_batch_is_encoded_as_its_texts_are_by_other_tokenizers(
    other_tokenizer: SentencePieceTokenizer, texts: list[str]
) -> None:
    expected = [other_tokenizer.encode(text) for text in texts]
    assert [ids.tolist() for ids in other_tokenizer.encode_batch(texts)] == expected


def test_runs_of_spaces_are_pieces_here(tokenizer: SentencePieceTokenizer) -> None:
    """Else the tests of batches would not see a text that is cut inside of one."""
    assert b"    " in map(tokenizer.piece_bytes, tokenizer.encode("a     b"))


def test_a_batch_with_more_words_than_are_remembered_is_right(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset.tokenization.sentencepiece, "MAX_KNOWN_WORDS", 3)
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    for text in ("one two three four five ", "four five six", "one two "):
        assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode(text)
    assert tokenizer._known_words is not None and len(tokenizer._known_words) == 3


@given(text=UNICODE)
def test_streamed_text_is_the_decoded_text(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = [1, *tokenizer.encode(text), 2]
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def test_a_character_is_streamed_when_it_is_complete(tokenizer: SentencePieceTokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    pushed = [stream.push(token_id) for token_id in tokenizer.encode("字")]
    assert pushed[-1] == "字" and not any(pushed[:-1])
    unfinished = StreamDecoder(tokenizer)
    assert "".join(unfinished.push(token_id) for token_id in tokenizer.encode("字")[:-1]) == ""
    assert unfinished.finish() == "\ufffd"


@given(text=UNICODE)
def test_byte_lengths_add_up_to_the_text(tokenizer: SentencePieceTokenizer, text: str) -> None:
    prefix = 1 if text else 0  # the space that is put before a text
    found = sum(len(tokenizer.piece_bytes(token_id)) for token_id in tokenizer.encode(text))
    assert found == len(text.replace("\u2581", " ").encode()) + prefix


def test_special_tokens_are_no_text_and_never_made_from_text(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.piece_bytes(1) == tokenizer.piece_bytes(2) == b""
    assert not {1, 2} & set(tokenizer.encode("<s> and </s>"))


def test_half_a_surrogate_pair_is_refused(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode_batch(["fine", "a\ud800"])


def test_ids_of_another_vocabulary_are_refused(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match="31999"):
        tokenizer.decode([5, 31999])
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.array(tokenizer.encode("Paris"))) == "Paris"


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} .*\({len(content)} bytes"):
        load_tokenizer(path)


def test_a_cut_off_file_is_named(tmp_path: Path, tokenizer_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut off"):
        load_tokenizer(path)


def test_a_folder_with_copies_of_its_files_is_a_tokenizer(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    for file in tokenizer.files():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path).encode("Paris") == tokenizer.encode("Paris")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\*\.model.*found nothing"):
        load_tokenizer(tmp_path)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without any tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA_TOKENIZER", raising=False)
    return tmp_path


def test_tokenizers_are_found_in_the_documented_order(
    bare: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub, tokenizer_path: Path
) -> None:
    hub.files["tokenizer.model"] = tokenizer_path.read_bytes()
    default = Path("tokenizers/llama-32k/tokenizer.model")
    assert find_tokenizer() == default
    assert default.read_bytes() == tokenizer_path.read_bytes()

    asked = len(hub.requests)
    assert find_tokenizer() == default
    (bare / "environment.model").touch()
    monkeypatch.setenv("LLAMA_TOKENIZER", "environment.model")
    assert find_tokenizer() == Path("environment.model")
    (bare / "given.model").touch()
    assert find_tokenizer("given.model") == Path("given.model")
    assert len(hub.requests) == asked


def test_a_named_tokenizer_that_is_missing_is_an_error(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nowhere.model"):
        find_tokenizer("nowhere.model")
    monkeypatch.setenv("LLAMA_TOKENIZER", "gone.model")
    with pytest.raises(ValueError, match="LLAMA_TOKENIZER.*gone.model"):
        find_tokenizer()


def test_without_any_tokenizer_the_error_says_all_four_ways(bare: Path, hub: FakeHub) -> None:
    with pytest.raises(ValueError) as error:
        find_tokenizer()
    for way in (
        "dataset.tokenizer_path",
        "LLAMA_TOKENIZER",
        "tokenizers/llama-32k/tokenizer.model",
        "Hugging Face Hub",
    ):
        assert way in str(error.value)
