"""`apply_chat_template` of transformers gives the ids of our templates, for every format."""

import json

import pytest

from dataset.chat.template import ChatEncoder
from dataset.text.conversation import Turn
from dataset.text.sample_corpus import train_tokenizer
from dataset.text.template import ConversationEncoder
from dataset.tokenization.for_transformers import tokenizer_config, tokenizer_json
from dataset.tokenization.lookup import load_tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer, open_chat_tokenizer
from tests.dataset.instruct_samples import WORDING
from tests.dataset.tokenizer_samples import llama_style, make_byte_level

transformers = pytest.importorskip("transformers")
CONVERSATIONS = (
    [Turn("user", "the answer is")],
    [Turn("system", "Be  brief.\n"), Turn("user", " what is it? ")],
    [Turn("system", ""), Turn("user", "a"), Turn("assistant", "\u00e4\u6f22\U0001f44d"), Turn("user", "[USER]\n'it'")],
    [Turn("user", "a"), Turn("user", "b\n"), Turn("assistant", " c "), Turn("assistant", ""), Turn("user", "{{ d }}")],
)


def write(folder, kind):
    folder.mkdir()
    if kind == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(train_tokenizer(WORDING, 400))
    elif kind == "trained":
        open_chat_tokenizer("train:400", texts=lambda: WORDING).save(folder)
    else:
        made = {"byte level": make_byte_level(("<s>", "</s>")), "llama": llama_style(), "metaspace": llama_style(True)}
        (folder / "tokenizer.json").write_text(json.dumps(made[kind]))
    return folder


def opened_by_transformers(folder, tokenizer, encoder):
    folder.mkdir()
    content = tokenizer_json(tokenizer)
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer, content, 999)))
    (folder / "chat_template.jinja").write_text(encoder.jinja())
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids_of(theirs, turns, **options):
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return theirs.apply_chat_template(messages, return_dict=True, **options)["input_ids"]


@pytest.mark.parametrize("kind", ["sentencepiece", "trained", "byte level", "llama", "metaspace"])
def test_chat(kind, tmp_path):
    ours = load_chat_tokenizer(write(tmp_path / "ours", kind))
    encoder = ChatEncoder(ours, loss_on="all")
    theirs = opened_by_transformers(tmp_path / "theirs", ours, encoder)
    for turns in CONVERSATIONS:
        assert ids_of(theirs, turns, add_generation_prompt=True) == encoder.encode_prompt(turns)
        (whole,) = encoder.encode(turns)
        assert ids_of(theirs, turns) == whole.ids.tolist()


@pytest.mark.parametrize("template", ["markers", "plain"])
@pytest.mark.parametrize("kind", ["sentencepiece", "byte level", "llama", "metaspace"])
def test_instructions(kind, template, tmp_path):
    ours = load_tokenizer(write(tmp_path / "ours", kind))
    encoder = ConversationEncoder(ours, template=template)
    theirs = opened_by_transformers(tmp_path / "theirs", ours, encoder)
    for turns in CONVERSATIONS:
        assert ids_of(theirs, turns, add_generation_prompt=True) == encoder.encode_prompt(turns)
        answered = encoder.encode([*turns, Turn("assistant", "it is", is_trained=True)])
        assert ids_of(theirs, [*turns, Turn("assistant", "it is")]) == answered.ids.tolist()
