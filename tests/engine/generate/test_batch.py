"""Rows that join a running batch and leave it say what each says alone, whatever the others ask for."""

import random

import pytest

from engine.generate import token_reader
from engine.generate.batch import Batch, Row
from engine.generate.decode import memory_of
from engine.generate.options import DecodeOptions, ExitRule, SamplingOptions
from tests.engine.generate.test_decode import generated, lively
from tests.models.small_retnet import make_model

DEEPEST, WINDOW, MOST_ROWS = 6, 48, 4


def sampled(seed, **options):
    return SamplingOptions(temperature=1.0, seed=seed, **options)


WANTED = [  # prompt, tokens, options
    ([3, 4, 5, 6, 7], 9, DecodeOptions()),
    ([8, 9], 4, DecodeOptions(sampled(1))),
    ([21, 12, 23] * 7, 12, DecodeOptions(depth=2)),
    ([5], 1, DecodeOptions(sampled(2, top_k=5), depth=1)),
    ([9, 8, 7, 6], 8, DecodeOptions(exit=ExitRule("kl", 0.5))),
    ([17, 3] * 6, 10, DecodeOptions(sampled(3, repetition_penalty=1.4), exit=ExitRule("margin", 0.3))),
    ([11, 12], 5, DecodeOptions(sampled(3, repetition_penalty=1.4), num_top=3)),
    ([30, 2, 14, 6] * 5, 9, DecodeOptions(exit=ExitRule("head", 0.6))),
    ([4, 4, 4], 7, DecodeOptions(sampled(4, top_p=0.9, min_p=0.01), depth=3, exit=ExitRule("kl", 2.0))),
    ([1, 2, 3], 6, DecodeOptions(sampled(1), num_top=1)),
]


def run_together(model, wanted, chunk, num_steps=DEEPEST, compile=False):
    """The tokens of each text, where one joins the batch whenever there is room, a part of its prompt at a time."""
    memory, reader = memory_of(
        model, DecodeOptions(compile=compile), MOST_ROWS, WINDOW, num_steps, user=model, every_step=True
    )
    memory.select_rows([])
    batch, said, waiting = Batch(model, [], memory, reader), [[] for _ in wanted], list(enumerate(wanted))

    def take(tokens):
        for token in tokens:
            said[token.row].append(token)

    while waiting or batch.rows:
        batch.drop_ended()
        if waiting and len(batch.rows) < MOST_ROWS:
            number, (prompt, room, options) = waiting.pop(0)
            row = Row(number, model, prompt, options, room)
            own, _ = memory_of(model, DecodeOptions(), 1, len(prompt), row.num_steps, user=row)
            joining = Batch(model, [row], own)
            for found in joining.read_prompts(chunk):
                if found is not None:
                    take(joining.choose(*found))
                    joining.drop_ended()
                    if joining.rows:
                        batch.add(joining)
                elif batch.rows:
                    take(batch.choose(*batch.read()))
                    batch.drop_ended()
        if batch.rows:
            take(batch.choose(*batch.read()))
    return said


def alone(model, prompt, room, options):
    names = ("sampling", "depth", "exit", "num_top")
    return generated(model, [prompt], max_new_tokens=room, **{name: getattr(options, name) for name in names})[0]


def same(together, model, wanted):
    for row, one in zip(together, wanted, strict=True):
        expected = alone(model, *one)
        assert [(t.id, t.depth) for t in row] == [(t.id, t.depth) for t in expected]
        assert [t.logprob for t in row] == pytest.approx([t.logprob for t in expected], abs=1e-4)
        assert [[top for top, _ in t.top] for t in row] == [[top for top, _ in t.top] for t in expected]


@pytest.mark.parametrize("chunk", [None, 4, 1])
@pytest.mark.parametrize("options", [{}, {"prefix_mask": True}, {"pos_encodings": "learned"}], ids=str)
def test_rows_that_come_and_go_say_what_each_says_alone(options, chunk):
    model = lively(halt_max_steps=DEEPEST, seq_len=WINDOW, **options)
    same(run_together(model, WANTED, chunk), model, WANTED)


@pytest.mark.parametrize("order", range(4))
def test_any_order_will_do(order):
    model = lively(halt_max_steps=DEEPEST, seq_len=WINDOW)
    wanted = random.Random(order).sample(WANTED, len(WANTED))
    same(run_together(model, wanted, 3), model, wanted)


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_retnet_takes_rows_in_and_lets_them_go(chunk):
    model = make_model(seq_len=WINDOW)
    wanted = [(prompt, room, DecodeOptions(options.sampling)) for prompt, room, options in WANTED]
    same(run_together(model, wanted, chunk, num_steps=1), model, wanted)


def test_compiled_code_keeps_its_shapes_while_rows_come_and_go(monkeypatch):
    shapes = []

    def eager(*given):
        shapes.append(tuple(given[1].shape))
        return token_reader.network_at(*given)

    monkeypatch.setattr(token_reader, "_compiled", lambda: eager)
    model = lively(halt_max_steps=DEEPEST, seq_len=WINDOW)
    same(run_together(model, WANTED, 4, compile=True), model, WANTED)
    assert len(set(shapes)) == 1


def test_room_for_all_rows_is_there_from_the_start_and_stays():
    model = lively(halt_max_steps=DEEPEST, seq_len=WINDOW)
    memory, _ = memory_of(model, DecodeOptions(), MOST_ROWS, WINDOW, DEEPEST, user=model)
    memory.select_rows([])
    places = [part.data_ptr() for part in (*memory.keys, *memory.values)]
    batch = Batch(model, [], memory)
    for number in range(12):
        own, _ = memory_of(model, DecodeOptions(), 1, 2, DEEPEST, user=model)
        joining = Batch(model, [Row(number, model, [3 + number, 4], DecodeOptions(), 2 + number % 3)], own)
        (found,) = joining.read_prompts()
        joining.choose(*found)
        batch.add(joining)
        batch.choose(*batch.read())
        batch.drop_ended()
    assert [part.data_ptr() for part in (*memory.keys, *memory.values)] == places
    assert max(row.num_tokens for row in batch.rows) < 5 and len(batch.rows) < MOST_ROWS


def test_of_rows_that_leave_the_last_take_the_places_and_no_other_moves(monkeypatch):
    model = lively(seq_len=WINDOW)
    memory, _ = memory_of(model, DecodeOptions(), 5, WINDOW, 3, user=model)
    batch = Batch(model, [Row(number, model, [3 + number], DecodeOptions(), 9) for number in range(5)], memory)
    (found,) = batch.read_prompts()
    batch.choose(*found)
    kept = []
    monkeypatch.setattr(memory, "select_rows", lambda rows: kept.append(list(rows)))
    for number in (1, 4):
        batch.rows[number].has_ended = True
    batch.drop_ended()
    assert kept == [[0, 3, 2]] and [row.number for row in batch.rows] == [0, 3, 2]


@pytest.mark.parametrize(
    ("prompt", "room", "options", "told"),
    [
        ([], 2, DecodeOptions(), "empty"),
        ([3], 0, DecodeOptions(), "max_new_tokens=0"),
        ([3], 2, DecodeOptions(depth=1, exit=ExitRule("kl", 1.0)), "--depth"),
    ],
)
def test_what_cannot_be_continued_is_refused(prompt, room, options, told):
    with pytest.raises(ValueError, match=told):
        Row(0, lively(), prompt, options, room)
