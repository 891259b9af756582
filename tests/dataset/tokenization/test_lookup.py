"""One look-up for every kind of tokenizer, and one class for a tokenizer.json whoever asks for it."""

import json
from pathlib import Path

import pytest

from dataset.tokenization.lookup import load_tokenizer, open_tokenizer
from dataset.tokenization.protocol import StreamDecoder, Tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer
from tests.dataset.tokenizer_samples import llama_style, make_byte_level

TEXTS = ["", " ", "a", " a", "the answer  is\n", "é e\u0301 日本", "</s><s>x", "<0x41>"]
STRIPPED = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = StreamDecoder(tokenizer)
    return "".join([*map(stream.push, ids), stream.finish()])


@pytest.fixture(params=["byte level", "llama", "llama, metaspace", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tokenizer_path: Path, tmp_path: Path) -> Path:
    if request.param == "sentencepiece":
        (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
        return tmp_path
    content = make_byte_level(added=("<s>", "</s>"))
    if request.param != "byte level":
        decoder = {"type": "Sequence", "decoders": STRIPPED}
        content = llama_style(is_metaspace="metaspace" in request.param) | {"decoder": decoder}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path


def test_every_kind_is_loaded_the_same_way_and_streams_what_it_decodes(folder: Path) -> None:
    (file,) = folder.iterdir()
    tokenizer = load_tokenizer(folder)
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert ids == [found.tolist() for found in tokenizer.encode_batch(TEXTS)]
    for opened in (load_tokenizer(file), open_tokenizer(str(folder)), open_tokenizer(str(file))):
        assert [opened.encode(text) for text in TEXTS] == ids
        assert (opened.eos_id, opened.files()) == (tokenizer.eos_id, [file])
    assert [streamed(tokenizer, found) for found in ids] == [tokenizer.decode(found) for found in ids]


def test_chat_gives_the_ids_of_the_plain_tokenizer(folder: Path) -> None:
    plain, chat = load_tokenizer(folder), load_chat_tokenizer(folder)
    for text in TEXTS:
        if not text.startswith(" "):  # chat keeps a space that begins a text, which some tokenizers take for their own
            assert chat.encode(text) == plain.encode(text)


def test_of_two_kinds_in_a_folder_the_reader_chooses(folder: Path, tokenizer_path: Path) -> None:
    (folder / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(make_byte_level(added=("</s>",))))
    assert load_tokenizer(folder).files() == [folder / "tokenizer.model"]
    assert open_tokenizer(str(folder)).files() == [folder / "tokenizer.json"]
