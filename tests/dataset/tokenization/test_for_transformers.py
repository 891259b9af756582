"""tokenizer.json written for transformers gives our ids, for whole texts and for the parts of a conversation."""

import io
import json

import pytest

from dataset.text.sample_corpus import train_tokenizer
from dataset.tokenization.for_transformers import CONTINUE, START, tokenizer_config, tokenizer_json
from dataset.tokenization.lookup import load_tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer
from tests.dataset.instruct_samples import WORDING
from tests.dataset.tokenizer_samples import llama_style, make_byte_level

tokenizers = pytest.importorskip("tokenizers")
TEXTS = (
    *("the answer is", " the  answer ", "  two", "a\n\n b\t", "\u00e4\u6f22\U0001f44d \u2581x", "12345 [USER]\n"),
    *WORDING[:20],
)


def write(folder, kind):
    """A tokenizer of this kind as a file."""
    if kind == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(train_tokenizer(WORDING, 400))
    elif kind == "whole words":
        (folder / "tokenizer.model").write_bytes(train_tokenizer(WORDING, 200, whole=["answer", "ans", "r.2", "]"]))
    else:
        made = {"byte level": make_byte_level(("<s>", "</s>")), "llama": llama_style(), "metaspace": llama_style(True)}
        (folder / "tokenizer.json").write_text(json.dumps(made[kind]))
    return folder


@pytest.mark.parametrize("kind", ["sentencepiece", "whole words", "byte level", "llama", "metaspace"])
def test_texts_and_parts_become_the_same_ids(kind, tmp_path):
    ours = load_tokenizer(write(tmp_path, kind))
    content = tokenizer_json(ours)
    theirs = tokenizers.Tokenizer.from_str(content)
    names = tokenizer_config(ours, content, 10)
    texts = [text for text in TEXTS if kind != "whole words" or text.isprintable() and text.isascii()]
    for text in texts:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text
        eos = names["eos_token"]
        if kind == "whole words":  # which have no line feed
            plain = theirs.encode(f"{START}{text}{START}{text}{eos}", add_special_tokens=False).ids
            assert plain == [*ours.encode(text), *ours.encode(text), ours.eos_id]
            continue
        whole = theirs.encode(f"{START}{text}{START}{texts[0]}{eos}{START}{text}{CONTINUE}\n", add_special_tokens=False)
        apart = [*ours.encode(text), *ours.encode(texts[0]), ours.eos_id, *ours.encode(text)]
        newline = ours.encode("a\n")[len(ours.encode("a")) :]
        assert whole.ids == apart + newline, text
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)), text
    assert theirs.token_to_id(names["eos_token"]) == ours.eos_id
    assert theirs.token_to_id(names["pad_token"]) == ours.pad_id


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level", "llama", "metaspace"])
def test_texts_between_the_markers_of_chat_become_the_same_ids(kind, tmp_path):
    ours = load_chat_tokenizer(write(tmp_path, kind))
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(ours))
    for text in TEXTS:
        whole = theirs.encode(f"<|user|>{ours.before}{text}<|enduser|>", add_special_tokens=False).ids
        assert whole == [ours.special("<|user|>"), *ours.encode(text), ours.special("<|enduser|>")], text


@pytest.mark.parametrize(
    ("option", "token"),
    [
        ({"model_type": "unigram", "vocab_size": 350}, "model_type"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "whitespaces"),
    ],
)
def test_other_kinds_of_sentencepiece_are_refused(option, token, tmp_path):
    import sentencepiece

    model = io.BytesIO()
    usual = {"model_type": "bpe", "vocab_size": 400, "normalization_rule_name": "identity", "byte_fallback": True}
    usual |= {"remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(WORDING), model_writer=model, **usual | option)
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=token):
        tokenizer_json(load_tokenizer(tmp_path))
