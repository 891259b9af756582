"""A token read in shapes that never change says what it says otherwise, and few graphs serve all replies."""

import re

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from engine.generate import token_reader
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, ExitRule, SamplingOptions
from models.kv_cache import KeyValueMemory
from tests.engine.generate.test_decode import PROMPTS, generated, ids, lively
from tests.engine.text_samples import ARCHS, make_head

WINDOW = 256
RULES = [ExitRule(), ExitRule("kl", 0.5), ExitRule("margin", 0.3), ExitRule("head", 0.6)]


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without a code generator and counts the graphs; falling back to plain code is an error."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(token_reader.network_at, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(token_reader, "_compiled", lambda: compiled)
    monkeypatch.setattr(token_reader, "_READERS", type(token_reader._READERS)())
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=token_reader.MOST_GRAPHS):
        yield counter
    torch._dynamo.reset()


def same(found, expected) -> None:
    assert ids(found) == ids(expected)
    for row, other in zip(found, expected, strict=True):
        assert [token.depth for token in row] == [token.depth for token in other]
        assert [token.logprob for token in row] == pytest.approx([token.logprob for token in other], abs=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=[rule.kind for rule in RULES])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_row_says_what_it_says_without_compiling_alone_or_in_a_batch(arch, rule, graphs):
    model = lively(arch, halt_max_steps=4)
    expected = generated(model, exit=rule)
    same(generated(model, exit=rule, compile=True), expected)
    for prompt, row in zip(PROMPTS, expected, strict=True):
        same(generated(model, [prompt], exit=rule, compile=True), [row])


@pytest.mark.parametrize("options", [{"pos_encodings": "learned", "norm": "post"}, {"prefix_mask": True}])
def test_other_positions_and_masks_say_the_same(options, graphs):
    model = lively(**options)
    same(generated(model, compile=True), generated(model))


def test_rows_that_end_idle_and_the_others_go_on(graphs):
    model, varied = lively(), SamplingOptions(temperature=1.0, seed=1, repetition_penalty=1.5)
    for rule in RULES[:2]:
        limits = {"max_new_tokens": (6, 2, 4), "sampling": varied, "exit": rule}
        same(generated(model, compile=True, **limits), generated(model, **limits))


def test_forced_tokens_are_as_likely(graphs):
    model, forced = lively(), [[5, 6, 7], [8], [9, 10]]
    same(generated(model, forced=forced, compile=True), generated(model, forced=forced))


def test_a_graph_serves_all_replies_of_a_size(graphs):
    model = lively(seq_len=WINDOW)
    for prompts, new in (([PROMPTS[0]], 6), ([PROMPTS[1]], 3), ([[3] * 40], 9)):
        generated(model, prompts, max_new_tokens=new, compile=True)
        assert graphs.frame_count == 1
    for rows in (3, 4, 3):
        generated(model, (PROMPTS * 2)[:rows], max_new_tokens=(9, 2, 3, 5)[:rows], compile=True)
    assert graphs.frame_count == 2, "rows that end leave the shapes as they are"
    for length in (70, 90):
        generated(model, [[3] * length], compile=True)
    assert graphs.frame_count == 3
    generated(model, [PROMPTS[0]], compile=True, exit=ExitRule("kl", 0.0))
    generated(model, [PROMPTS[0]], compile=True, depth=7)
    assert graphs.frame_count == 3, "the number of supervision steps is no part of it"


def test_more_sizes_than_the_compiler_usually_keeps_are_kept(graphs):
    model = lively(seq_len=WINDOW)
    for _ in range(2):
        for rows in (1, 2, 4, 8):
            for length in (3, 70, 130):
                generated(model, [[3] * length] * rows, max_new_tokens=2, compile=True)
    assert graphs.frame_count == 12


def test_readers_are_kept_for_the_next_reply_and_serve_one_at_a_time(graphs):
    model = lively()
    expected, used = ids(generated(model)), []
    for _ in range(2):
        decoding = Decoding(model, PROMPTS, DecodeOptions(compile=True), max_new_tokens=6)
        used.append(decoding.reader)
        found = [[] for _ in PROMPTS]
        for tokens, others in zip(
            decoding, Decoding(model, PROMPTS, DecodeOptions(compile=True), max_new_tokens=6), strict=True
        ):
            assert [token.id for token in tokens] == [token.id for token in others], "interleaved"
            for token in tokens:
                found[token.row].append(token.id)
        assert found == expected
        del decoding
    assert used[0] is used[1] and len(token_reader._READERS[model]) == 2


def test_few_readers_wait_and_none_outlives_its_model_or_other_weights(graphs):
    model = lively(seq_len=WINDOW)
    for rows in (1, 2, 4, 8, 16, 32):
        generated(model, [[3]] * rows, max_new_tokens=2, compile=True)
    assert [reader.size.rows for reader in token_reader._READERS[model]] == [4, 8, 16, 32]
    model.inner.lm_head.weight.data = model.inner.lm_head.weight.data.clone()
    generated(model, [[3]] * 32, max_new_tokens=2, compile=True)
    (new,) = [reader for reader in token_reader._READERS[model] if reader.size.rows == 32][-1:]
    assert new.addresses == [weight.data_ptr() for weight in model.parameters()]
    del model, new
    assert not len(token_reader._READERS)


def test_decoding_after_training_was_compiled_meets_none_of_its_graphs(graphs):
    model = lively()
    model.inner.network = lambda *_: pytest.fail("decoding made a call of training")
    for compile in (False, True):
        generated(model, compile=compile)


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_generated_code_copies_no_cache(dtype):
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    model = make_head(seq_len=WINDOW, forward_dtype=dtype).model
    reader = token_reader.token_reader(model, 2, 100, 2, False, user=model)
    capacity = reader.size.capacity
    with torch.inference_mode():
        list(reader.memory.read(torch.tensor([[3, 4, 5], [6, 7, 0]]), [3, 2]))
        _, (code,) = run_and_get_code(lambda: list(reader.read(torch.tensor([8, 9]))))
    allocated = re.findall(r"empty_strided\w*\(\((.*?)\)", code)
    assert allocated and not [shape for shape in allocated if re.search(rf"\b{capacity}\b.*\b16\b", shape)]
    same_place = KeyValueMemory(model, 2, capacity, 2)
    with torch.inference_mode():
        list(same_place.read(torch.tensor([[3, 4, 5], [6, 7, 0]]), [3, 2]))
        list(same_place.read(torch.tensor([[8], [9]]), [1, 1]))
    for own, expected in zip(reader.memory.keys, same_place.keys, strict=True):
        torch.testing.assert_close(
            own[:, :, :, :4], expected[:, :, :, :4], atol=1e-5 if dtype == "float32" else 0.1, rtol=0
        )
