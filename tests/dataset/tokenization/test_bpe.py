import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset.tokenization.special_tokens import ChatTokenizer, load_chat_tokenizer
from dataset.tokenization.tokenizer_json import JsonTokenizer, parse_tokenizer, train_bpe
from tests.dataset.instruct_samples import WORDING
from tests.dataset.tokenizer_samples import added_token, llama_style, make_byte_level

Content = dict[str, Any]
TEXT = " The answer  is: 47\n\u00e9 e\u0301 \ufb01 "


def opened(content: Content, folder: Path) -> ChatTokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return load_chat_tokenizer(path)


def test_a_special_token_that_is_there_keeps_its_id(tmp_path: Path) -> None:
    content = make_byte_level(added=("<s>", "<|endoftext|>"))
    tokenizer = opened(content, tmp_path)
    assert tokenizer.eos_id == content["added_tokens"][1]["id"]
    assert tokenizer.special("<|user|>") == tokenizer.eos_id + 1
    assert tokenizer.vocab_size == tokenizer.eos_id + 1 + 8


def test_a_special_token_inside_the_vocabulary_keeps_its_id(tmp_path: Path) -> None:
    """As in GPT-2's, whose last piece it is."""
    content = make_byte_level()
    last = len(content["model"]["vocab"])
    content["model"]["vocab"]["<|endoftext|>"] = last
    content["added_tokens"] = [added_token("<|endoftext|>", last)]
    tokenizer = opened(content, tmp_path)
    assert tokenizer.eos_id == last and last not in tokenizer.encode("<|endoftext|>")


@pytest.mark.parametrize("name", ["<|user|>", "<think>"])
def test_added_tokens_that_are_not_declared_special_are_not_made_from_text(tmp_path: Path, name: str) -> None:
    content = make_byte_level()
    token_id = len(content["model"]["vocab"])
    content["added_tokens"] = [added_token(name, token_id, special=False), added_token("<|pad|>", token_id + 1)]
    tokenizer = opened(content, tmp_path)
    assert tokenizer.pad_id == token_id + 1
    assert token_id not in tokenizer.encode(name)
    assert tokenizer.decode(tokenizer.encode(name)) == name


def test_an_added_token_that_is_a_piece_stays_one(tmp_path: Path) -> None:
    content = make_byte_level()
    piece, token_id = max(content["model"]["vocab"].items(), key=lambda item: item[1])
    content["added_tokens"] = [added_token(piece, token_id, special=False)]
    tokenizer = opened(content, tmp_path)
    assert tokenizer.piece_bytes(token_id) == piece.replace("\u0120", " ").encode() != b""


def prefix_space(content: Content) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def unicode_form(content: Content) -> None:
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}


def truncation(content: Content) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip


def dropout(content: Content) -> None:
    content["model"]["dropout"] = 0.9


def template(content: Content) -> None:
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"!": {"id": "!", "ids": [0], "tokens": ["!"]}},
    }


@pytest.mark.parametrize("change", [prefix_space, unicode_form, truncation, dropout, template])
def test_what_would_change_a_text_is_switched_off(tmp_path: Path, change: Callable[[Content], None]) -> None:
    plain = opened(make_byte_level(), tmp_path)
    content = make_byte_level()
    change(content)
    tokenizer = opened(content, tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(TEXT) == plain.encode(TEXT)
    assert not tokenizer.has_space_prefix


def test_older_files_are_read(tmp_path: Path) -> None:
    """Without the kind of model, with merges as lines."""
    content = make_byte_level()
    expected = opened(content, tmp_path).encode(TEXT)
    del content["model"]["type"]
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    assert opened(content, tmp_path).encode(TEXT) == expected


@pytest.mark.parametrize("is_metaspace", [False, True])
def test_llama_pieces_are_words_with_their_space_and_bytes(tmp_path: Path, is_metaspace: bool) -> None:
    tokenizer = opened(llama_style(is_metaspace), tmp_path)
    assert tokenizer.has_space_prefix
    pieces = [tokenizer.piece_bytes(token_id) for token_id in tokenizer.encode("the answer\u00e9")]
    assert pieces == [b" the", b" answer", b"\xc3", b"\xa9"]
    assert tokenizer.piece_bytes(0) == tokenizer.piece_bytes(2) == b""  # <unk>, </s>
    assert [tokenizer.decode(tokenizer.encode(text)) for text in (" the", "  the", " ")] == [" the", "  the", " "]


def test_a_tokenizer_without_a_space_before_a_text_is_told_apart(tmp_path: Path) -> None:
    content = llama_style()
    content["normalizer"] = content["normalizer"]["normalizers"][1]  # as Gemma's
    tokenizer = opened(content, tmp_path)
    assert not tokenizer.has_space_prefix
    assert tokenizer.decode(tokenizer.encode(" the answer")) == " the answer"
    assert tokenizer.piece_bytes(tokenizer.encode("the")[0]) == b"the"


def lower_case(content: Content) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def dropped_spaces(content: Content) -> None:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def no_bytes(content: Content) -> None:
    content["pre_tokenizer"] = {"type": "Whitespace"}


def one_byte_less(content: Content) -> None:
    vocab = content["model"]["vocab"]
    vocab["~~"] = vocab.pop("\u0100")  # the byte 0


def word_piece(content: Content) -> None:
    content["model"] = {
        "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"a": 0},
    }  # fmt: skip


def unigram(content: Content) -> None:
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": True}


def suffix(content: Content) -> None:
    content["model"]["end_of_word_suffix"] = "</w>"


def gap(content: Content) -> None:
    content["model"]["vocab"]["~~"] = 5000


def merged_special(content: Content) -> None:
    vocab = content["model"]["vocab"]
    for pair in ("</", "</s", "</s>"):
        content["model"]["merges"].append([pair[:-1], pair[-1]])
        vocab[pair] = len(vocab)
    content["added_tokens"] = [added_token("</s>", vocab["</s>"])]


def unmerged_special(content: Content) -> None:
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["</s>"] = len(content["model"]["vocab"])
    content["added_tokens"] = [added_token("</s>", content["model"]["vocab"]["</s>"])]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lower_case, "changes texts"),
        (dropped_spaces, "changes texts"),
        (no_bytes, "BPE without bytes"),
        (one_byte_less, "1 of 256 bytes"),
        (word_piece, "WordPiece"),
        (unigram, "Unigram"),
        (suffix, "marks"),
        (gap, "gaps"),
        (merged_special, "</s>"),
        (unmerged_special, "</s>"),
    ],
)
def test_what_would_lose_text_is_refused(tmp_path: Path, change: Callable[[Content], None], problem: str) -> None:
    content = make_byte_level()
    change(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json.*{problem}.*train:8000"):
        opened(content, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"version": "1.0", "model": 5}', "version https://git-lfs"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer.json .*\(\d+ characters\)"):
        load_chat_tokenizer(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="weights.bin"):
        load_chat_tokenizer(tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="nowhere.json"):
        load_chat_tokenizer(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("vocab", "merges", "problem"),
    [
        ("{", "", "damaged"),
        ("[]", "", "vocab.json.*list"),
        ("{}", "#version: 0.2\na b\na b c\n", "merges.txt, line 3.*'a b c'"),
        ('{"a": 0}', "a b\n", "damaged"),
    ],
)
def test_what_is_wrong_with_vocabulary_and_merges_is_said(
    tmp_path: Path, vocab: str, merges: str, problem: str
) -> None:
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ValueError, match=problem):
        load_chat_tokenizer(tmp_path)


def test_training_does_not_depend_on_the_process() -> None:
    program = (
        "from dataset.tokenization.tokenizer_json import train_bpe; from tests.dataset.instruct_samples import WORDING; "
        "print(train_bpe(330, WORDING), end='')"
    )
    root = Path(__file__).parents[3]
    other = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True).stdout
    assert other == train_bpe(330, WORDING)


def test_trained_digits_stand_alone() -> None:
    trained = parse_tokenizer(train_bpe(300, ["2024 and 2024 and 2024"] * 5), "trained")
    tokenizer = JsonTokenizer(trained, {"eos_token": "a"}, "trained")
    assert [tokenizer.piece_bytes(token_id) for token_id in tokenizer.encode("2024 and")] == [
        b"2",
        b"0",
        b"2",
        b"4",
        b" and",
    ]
