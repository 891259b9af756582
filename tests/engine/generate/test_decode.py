"""Decoding says what the model says: alone or in a batch, with and without memory, at every depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, ExitRule, SamplingOptions
from models.losses.text import Supervision
from tests.engine.text_samples import ARCHS, VOCAB, make_batch, make_head, make_store

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [21, 12, 23]]
ALWAYS, NEVER = ExitRule("kl", 1e9), ExitRule("kl", 0.0)
every_arch = pytest.mark.parametrize("arch", ARCHS)


def lively(arch="trm", **options):
    """A model that does not say the same token for ever: its recursion is louder than fresh weights make it."""
    model = make_head(arch, **options).model
    torch.nn.init.normal_(model.inner.lm_head.weight, generator=torch.Generator().manual_seed(0))
    return model


def generated(model, prompts=PROMPTS, forced=None, max_new_tokens=6, stop_ids=(), **options):
    """Tokens of each row, in order."""
    rows = [[] for _ in prompts]
    limits = {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids}
    for tokens in Decoding(model, prompts, DecodeOptions(**options), forced=forced, **limits):
        for token in tokens:
            rows[token.row].append(token)
    return rows


def ids(rows):
    return [[token.id for token in row] for row in rows]


@every_arch
def test_greedy_text_is_the_likeliest_token_after_each_prefix(arch):
    model = lively(arch)
    for prompt, row in zip(PROMPTS, generated(model, num_top=VOCAB), strict=True):
        text = list(prompt)
        for token in row:
            core = model.inner
            batch = {"inputs": torch.tensor([text])}
            with torch.no_grad():
                *_, (_, answers) = core.unroll(batch, model.config.halt_max_steps)
                chances = core.lm_head(answers[-1][0, -1]).softmax(-1)
            assert token.id == int(chances.argmax()) and token.depth == model.config.halt_max_steps
            assert token.logprob == pytest.approx(float(chances.max().log()), abs=1e-4)
            assert [top for top, _ in token.top[:3]] == chances.topk(3).indices.tolist()
            text.append(token.id)


def test_forced_tokens_tell_the_loss_that_evaluation_finds():
    head = make_head("trm", prefix_mask=True)
    store = make_store(5)
    expected = {}
    batch = make_batch(5, packing=False)
    at = Supervision.of(batch)
    *_, (scores, _) = head.depths(batch, at, 3)
    for row, length in enumerate(at.lengths.tolist()):
        first = int(at.lengths[:row].sum())
        expected[tuple(batch["inputs"][row, :2].tolist())] = scores.losses[first : first + length]
    documents = [store.document(index) for index in range(5)]
    starts = [int(is_trained.argmax()) for _, is_trained in documents]
    rows = generated(
        head.model,
        [text[:start].tolist() for (text, _), start in zip(documents, starts, strict=True)],
        forced=[text[start:].tolist() for (text, _), start in zip(documents, starts, strict=True)],
    )
    for (text, _), row in zip(documents, rows, strict=True):
        losses = expected[tuple(text[:2].tolist())]
        assert [-token.logprob for token in row] == pytest.approx(losses.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "sampling", [SamplingOptions(), SamplingOptions(temperature=1.0, seed=3)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("mode", ["exact", "recompute"])
def test_a_row_says_the_same_alone_or_in_a_batch(mode, sampling):
    model = lively()
    together = generated(model, mode=mode, sampling=sampling)
    alone = [generated(model, [prompt], mode=mode, sampling=sampling)[0] for prompt in PROMPTS]
    assert ids(together) == ids(alone) and len({tuple(row) for row in ids(together)}) == len(PROMPTS)


def test_the_seed_decides_a_sampled_text():
    model = lively()
    texts = [ids(generated(model, sampling=SamplingOptions(temperature=1.0, seed=seed))) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_row_ends_with_a_stop_id_at_its_length_or_when_told_and_the_others_go_on():
    model, varied = lively(), SamplingOptions(temperature=1.0, seed=1)
    free = ids(generated(model, sampling=varied))
    end = free[0][2]
    assert end not in (*free[0][:2], *free[1][:2])
    rows = ids(generated(model, max_new_tokens=(6, 2, 6), stop_ids=frozenset([end]), sampling=varied))
    assert rows[0] == free[0][:3] and rows[1] == free[1][:2]
    assert rows[2] == free[2][: free[2].index(end) + 1 if end in free[2] else 6]

    decoding, told = Decoding(model, PROMPTS, DecodeOptions(varied), max_new_tokens=6), [[], [], []]
    for tokens in decoding:
        for token in tokens:
            told[token.row].append(token.id)
        decoding.stop(1)
    assert told == [free[0], free[1][:1], free[2]]


@pytest.mark.parametrize(("rule", "steps"), [(ALWAYS, 2), (ExitRule("margin", 0.0), 1), (ExitRule("head", 0.0), 1)])
def test_rows_that_always_leave_at_once_are_those_of_as_few_steps(rule, steps):
    model = lively(halt_max_steps=6)
    early = generated(model, exit=rule)
    assert {token.depth for row in early for token in row} == {steps}, "the first token's too"
    assert early == generated(model, depth=steps)


def test_reading_a_prompt_stops_when_every_row_has_left(monkeypatch):
    model, made = lively(halt_max_steps=6), []
    decoding, step = Decoding(model, PROMPTS, DecodeOptions(exit=ALWAYS)), model.inner.step
    monkeypatch.setattr(model.inner, "step", lambda *given: made.append(1) or step(*given))
    list(decoding)
    assert len(made) == 2


def test_tokens_that_never_leave_are_those_of_full_depth():
    model = lively()
    assert generated(model, exit=NEVER) == generated(model)


prompt_lists = st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=8), min_size=2, max_size=5)


@pytest.mark.parametrize("kind", ["kl", "margin", "head"])
@pytest.mark.parametrize("options", [{}, {"prefix_mask": True}], ids=["causal", "prefix"])
@settings(max_examples=15, deadline=None)
@given(prompts=prompt_lists, share=st.floats(0.05, 0.95))
def test_leaving_does_not_depend_on_the_rest_of_the_batch(kind, options, prompts, share):
    model = lively(halt_max_steps=6, **options)
    rule = ExitRule(kind, {"kl": 2.0, "margin": 1.0, "head": 1.0}[kind] * share)
    together = generated(model, prompts, exit=rule, max_new_tokens=4)
    alone = [generated(model, [prompt], exit=rule, max_new_tokens=4)[0] for prompt in prompts]
    assert [[(t.id, t.depth) for t in row] for row in together] == [[(t.id, t.depth) for t in row] for row in alone]
    for row, expected in zip(together, alone, strict=True):
        assert [t.logprob for t in row] == pytest.approx([t.logprob for t in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["kl", "margin", "head"])
def test_rows_of_a_batch_leave_at_depths_of_their_own(kind):
    model, prompts = lively(halt_max_steps=8), [[number, 39 - number] for number in range(1, 20)]
    rule = ExitRule(kind, {"kl": 0.5, "margin": 0.3, "head": 0.6}[kind])
    firsts, laters = set(), set()
    for first, *later in generated(model, prompts, exit=rule, max_new_tokens=4):
        firsts.add(first.depth)
        laters |= {token.depth for token in later}
    assert len(firsts) > 2 and len(laters) > 2 and min(firsts) >= (2 if kind == "kl" else 1)


def test_deeper_steps_read_what_was_there_last_of_a_row_that_left():
    """Told by hand: what left after two steps, prompt or token, stands in every deeper memory as in the second."""
    model = lively(halt_max_steps=4)
    decoding = Decoding(model, [PROMPTS[0]], DecodeOptions(exit=ALWAYS), max_new_tokens=4)
    list(decoding)
    second, *deeper = decoding.memory.steps[1:]
    written = slice(0, len(PROMPTS[0]) + 3)
    assert all(keys[:, :, place].any() for keys in second.keys for place in range(written.stop))
    for step in deeper:
        for own, expected in zip((*step.keys, *step.values), (*second.keys, *second.values), strict=True):
            assert torch.equal(own[:, :, written], expected[:, :, written])


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "options", "told"),
    [
        ([[3], []], 2, {}, "empty"),
        ([], 2, {}, "empty"),
        ([[3] * 12], 6, {}, "17 positions .* 16"),
        ([[3]], 0, {}, "max_new_tokens=0"),
        ([[3]], 2, {"depth": 1, "exit": ALWAYS}, "--depth"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompts, max_new_tokens, options, told):
    with pytest.raises(ValueError, match=told):
        Decoding(lively(), prompts, DecodeOptions(**options), max_new_tokens=max_new_tokens)
