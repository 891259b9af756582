"""Plain texts: continued as they stand, told how likely they are, and scored as lm-eval asks for it."""

import json
from operator import itemgetter

import pytest

from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions
from tests.engine.serve.test_app import ask, client

PATH = "/v1/completions"
TEXT = "My name is Ada and I have 3 cats."


def complete(port, **body):
    status, answer = ask(port, body, path=PATH)
    assert status == 200, answer
    return answer


def forced(loaded, ids):
    """Log-probability of each id behind the first, one token after the other."""
    tokens = Decoding(loaded.model, [ids[:1]], DecodeOptions(num_top=5), forced=[ids[1:]])
    return [token for found in tokens for token in found]


def test_openais_client_completes_a_text_whole_and_streamed(started):
    api = client(started())
    asked = {"model": "ada", "prompt": TEXT, "max_tokens": 8, "temperature": 2.0, "seed": 1, "logprobs": 2}
    whole = api.completions.create(**asked)
    (choice,) = whole.choices
    assert len(choice.logprobs.tokens) == whole.usage.completion_tokens <= 8 and choice.text
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs)
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset) and choice.logprobs.text_offset[0] == 0
    pieces = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == choice.text
    assert pieces[-1].usage == whole.usage and pieces[-2].choices[0].finish_reason == choice.finish_reason


def test_ids_texts_and_lists_of_them_are_completed_each_as_alone(started, loaded):
    port, texts = started(), [TEXT, "Hello", "How many cats do I have?"]
    asked = {"max_tokens": 6, "temperature": 2.0, "seed": 5}
    alone = [complete(port, prompt=text, **asked)["choices"][0]["text"] for text in texts]
    for prompt in (texts, [loaded.tokenizer.encode(text) for text in texts]):
        found = sorted(complete(port, prompt=prompt, **asked)["choices"], key=itemgetter("index"))
        assert [choice["text"] for choice in found] == alone
    assert complete(port, prompt=loaded.tokenizer.encode(texts[1]), **asked)["choices"][0]["text"] == alone[1]
    assert len(set(alone)) == 3


def test_a_text_is_scored_token_by_token(started, loaded):
    port, ids = started(), loaded.tokenizer.encode(TEXT)
    answer = complete(port, prompt=TEXT, echo=True, logprobs=5, max_tokens=0)
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    assert choice["text"] == TEXT and answer["usage"]["completion_tokens"] == 0 and choice["finish_reason"] == "length"
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    expected = forced(loaded, ids)
    assert found["token_logprobs"][1:] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert len(found["tokens"]) == len(ids) and "".join(found["tokens"]).removeprefix(" ") == TEXT
    assert all(found["text_offset"][n] <= len(TEXT) for n in range(len(ids)))
    for top, token in zip(found["top_logprobs"][1:], expected, strict=True):
        assert 5 <= len(top) <= 6 and max(top.values()) == pytest.approx(
            max(token.top)[1] and top[max(top, key=top.get)]
        )


def test_lm_eval_scores_through_the_server(started, loaded):
    """As its `local-completions` asks and reads: ids or text, one more token, and the sum up to it."""
    port = started()
    context, continuation = "My name is", " Ada and I have 3 cats."
    whole, start = loaded.tokenizer.encode(context + continuation), len(loaded.tokenizer.encode(context))
    expected = forced(loaded, whole)[start - 1 :]
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "model": "ada"}
    for prompt in ([whole], [context + continuation]):
        answer = complete(port, prompt=prompt, **asked)
        (choice,) = answer["choices"]
        scored = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        assert sum(scored) == pytest.approx(sum(token.logprob for token in expected), abs=1e-3)
        assert len(scored) > 4 and all(logprob in top.values() for logprob, top in zip(scored, tops, strict=True))
        greedy = [logprob == max(top.values()) for logprob, top in zip(scored, tops, strict=True)]
        assert greedy == [token.id == max(token.top, key=itemgetter(1))[0] for token in expected]


def test_an_echo_is_said_first_and_a_stream_has_it_too(started):
    port = started()
    asked = {"prompt": TEXT, "echo": True, "max_tokens": 4, "temperature": 2.0, "seed": 1}
    whole = complete(port, **asked)["choices"][0]["text"]
    assert whole.startswith(TEXT) and len(whole) > len(TEXT)
    pieces = list(client(port).completions.create(model="ada", **asked, stream=True, logprobs=1))
    assert pieces[0].choices[0].text == TEXT and len(pieces[0].choices[0].logprobs.tokens) > 4
    assert "".join(piece.choices[0].text for piece in pieces) == whole


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "at least one id"),
        ({"prompt": []}, "0 texts"),
        ({"prompt": [[5, 10**6]]}, "at least one id"),
        ({"prompt": [5, "x"]}, "prompt"),
        ({"prompt": "x" * 2000}, "window of 96"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": ["x"] * 129}, "129"),
    ],
)
def test_what_cannot_be_completed_is_refused(started, body, told):
    status, answer = ask(started(), body, path=PATH)
    assert status == 400 and told in json.dumps(answer)


def test_what_leaves_early_is_not_scored(started, loaded):
    file = loaded.path / "exit.json"
    file.write_text(json.dumps({"steps": 3, "margin": {"threshold": 0.0, "mean_depth": 1.0}}))
    try:
        asked = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 0, "depth": "auto"}
        status, answer = ask(started(), asked, path=PATH)
    finally:
        file.unlink()
    assert status == 400 and "margin" in answer["error"]["message"]
