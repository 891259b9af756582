"""Scoring whole texts says what decoding them one token after the other says."""

import pytest

from engine.generate import score as scoring
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, ExitRule
from engine.generate.score import score
from tests.engine.generate.test_decode import lively
from tests.engine.text_samples import ARCHS, LENGTH, VOCAB
from tests.models.small_retnet import make_model

TEXTS = [[3, 4, 5, 6, 7], [8, 9], list(range(20, 20 + LENGTH + 1)), [21, 12, 23], [2, 39, 1, 0, 1]]
GIVEN = [2, 1, 4, 3, 1]


def decoded(model, texts, given, **options):
    """What decoding finds, of the texts of which something is scored."""
    kept = [number for number, text in enumerate(texts) if len(text) > given[number]]
    rows = [[] for _ in texts]
    prompts = [texts[number][: given[number]] for number in kept]
    forced = [texts[number][given[number] :] for number in kept]
    for tokens in Decoding(model, prompts, DecodeOptions(**options), forced=forced):
        for token in tokens:
            rows[kept[token.row]].append(token)
    return rows


def same(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for token, other in zip(sum(found, []), sum(expected, []), strict=True):
        assert token.id == other.id and token.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [top for top, _ in token.top] == [top for top, _ in other.top]
        assert [chance for _, chance in token.top] == pytest.approx([chance for _, chance in other.top], abs=1e-5)
        assert token.is_greedy == (other.top[0][0] == other.id)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("depth", [None, 1, 5])
def test_every_architecture_is_scored_as_it_decodes(arch, depth):
    model, options = lively(arch), {"depth": depth, "num_top": 3}
    same(score(model, TEXTS, DecodeOptions(**options), given=GIVEN, rows=2), decoded(model, TEXTS, GIVEN, **options))


def test_a_retnet_is_scored_as_it_decodes_and_has_one_depth():
    model = make_model()
    texts = [[token % model.config.vocab_size for token in text] for text in TEXTS]
    same(score(model, texts, DecodeOptions(num_top=3), given=GIVEN), decoded(model, texts, GIVEN, num_top=3))
    with pytest.raises(ValueError, match="depth=2"):
        score(model, texts, DecodeOptions(depth=2))


def test_what_is_given_sees_itself_in_both_directions_where_the_model_was_trained_so():
    model = lively(prefix_mask=True)
    found = score(model, TEXTS, DecodeOptions(num_top=3), given=GIVEN)
    same(found, decoded(model, TEXTS, GIVEN, num_top=3))
    closed = score(model, TEXTS, DecodeOptions(num_top=3), given=GIVEN, open_lengths=[0] * len(TEXTS))
    assert closed[2][0].logprob != pytest.approx(found[2][0].logprob, abs=1e-3)


def test_a_large_vocabulary_is_scored_in_chunks(monkeypatch):
    model, sizes, honest = lively(), [], scoring._of_chunk
    whole = score(model, TEXTS, DecodeOptions(num_top=VOCAB))
    monkeypatch.setattr(scoring, "rows_of_chunk", lambda vocab_size: 3)
    monkeypatch.setattr(scoring, "_of_chunk", lambda *given: sizes.append(len(given[0])) or honest(*given))
    same(score(model, TEXTS, DecodeOptions(num_top=VOCAB)), whole)
    assert max(sizes) == 3 and sum(sizes) == sum(len(text) - 1 for text in TEXTS)


def test_nothing_to_score_gives_nothing():
    assert score(lively(), [], DecodeOptions()) == []
    assert score(lively(), [[5], [3, 4]], DecodeOptions(), given=[1, 2]) == [[], []]


@pytest.mark.parametrize(
    ("texts", "options", "told"),
    [
        ([list(range(LENGTH + 2))], {}, f"{LENGTH + 1} positions"),
        ([[]], {}, "given=1"),
        ([[1, 2]], {"exit": ExitRule("kl", 0.1)}, "exit kl"),
        ([[1, 2]], {"depth": "auto"}, "depth=auto"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, options, told):
    with pytest.raises(ValueError, match=told):
        score(lively(), texts, DecodeOptions(**options))


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(ValueError, match="causal"):
        score(lively(causal=False), [[1, 2]], DecodeOptions())
