"""Decoding says what the model says: alone or in a batch, with and without memory, at every depth."""

import pytest
import torch

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


def test_tokens_that_always_leave_at_once_are_those_of_two_steps():
    model = lively(halt_max_steps=6)
    early = generated(model, exit=ALWAYS)
    assert {token.depth for row in early for token in row[1:]} == {2}
    two = generated(
        model, depth=2, forced=ids(early)
    )  # the prompt itself is read to the end, so its token is another's
    for row, expected in zip(early, two, strict=True):
        assert [t.logprob for t in row[1:]] == pytest.approx([t.logprob for t in expected[1:]], abs=1e-4)


def test_tokens_that_never_leave_are_those_of_full_depth():
    model = lively()
    assert generated(model, exit=NEVER) == generated(model)


@pytest.mark.parametrize("kind", ["kl", "margin", "head"])
def test_leaving_does_not_depend_on_the_rest_of_the_batch(kind):
    model = lively(halt_max_steps=8)
    depths = {token.depth for row in generated(model, num_top=2) for token in row}
    assert depths == {8}
    for threshold in {"kl": (0.05, 0.5), "margin": (0.1, 0.3), "head": (0.4, 0.6)}[kind]:
        rule = ExitRule(kind, threshold)
        together = generated(model, exit=rule)
        alone = [generated(model, [prompt], exit=rule)[0] for prompt in PROMPTS]
        assert [[(t.id, t.depth) for t in row] for row in together] == [[(t.id, t.depth) for t in row] for row in alone]
        assert any(t.depth < 8 for row in together for t in row) and min(t.depth for r in together for t in r) >= 2


def test_deeper_steps_read_what_a_token_that_left_had_last():
    """Told by hand: a token that leaves after two steps stands in every deeper memory as it stood in the second."""
    model = lively(halt_max_steps=4)
    decoding = Decoding(model, [PROMPTS[0]], DecodeOptions(exit=ALWAYS), max_new_tokens=4)
    list(decoding)
    second, *deeper = decoding.memory.steps[1:]
    written = slice(len(PROMPTS[0]), len(PROMPTS[0]) + 3)
    for step in deeper:
        assert torch.equal(step.keys[:, :, :, written], second.keys[:, :, :, written])
        assert not torch.equal(step.keys[:, :, :, : written.start], second.keys[:, :, :, : written.start])


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
