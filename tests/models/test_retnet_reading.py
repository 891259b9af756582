"""Reading on from a state that does not grow says what reading at once says; so do the kernels where there are any."""

import pytest
import torch

from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions
from models.retnet.config import preset
from models.retnet.model import RetentionMemory, RetNet
from models.retnet.retention import Kernels
from tests.models.small_retnet import LENGTH, close, hidden_of, make_ids, make_model


@torch.no_grad()
def prefill(model, ids, lengths):
    """The hidden state (B, D) at the end of each prompt, and what is kept."""
    answer, state = model.inner.read(ids, lengths, model.inner.empty_state(len(ids)))
    return answer[torch.arange(len(ids)), state.lengths - 1], state


@torch.no_grad()
def next_token(model, ids, state):
    """The hidden state (B, D) after one more token (B,) a row, and what is kept."""
    answer, state = model.inner.read(ids[:, None], [1] * len(ids), state)
    return answer[:, 0], state


@pytest.mark.parametrize("chunk_size", [5, 128])
def test_reading_token_by_token_says_what_reading_at_once_says(chunk_size):
    model, ids, lengths = make_model(chunk_size=chunk_size), make_ids(3, 40), [17, 1, 9]
    whole = hidden_of(model, ids)
    hidden, state = prefill(model, ids[:, :17], lengths)
    close(hidden, whole[torch.arange(3), torch.tensor(lengths) - 1])
    for _ in range(20):
        next_ids = ids[torch.arange(3), state.lengths]
        hidden, state = next_token(model, next_ids, state)
        close(hidden, whole[torch.arange(3), state.lengths - 1])
    assert state.lengths.tolist() == [37, 21, 29]


def test_reading_in_bfloat16_says_about_the_same():
    model, ids = make_model(forward_dtype="bfloat16"), make_ids(2, 200)
    whole = hidden_of(model, ids).float()
    hidden, state = prefill(model, ids[:, :150], [150, 120])
    for _ in range(50):
        hidden, state = next_token(model, ids[torch.arange(2), state.lengths], state)
    assert all(layer.dtype == torch.float32 for layer in state.layers)
    expected = whole[torch.arange(2), state.lengths - 1]
    assert (hidden.float() - expected).norm() / expected.norm() < 3e-2


def test_what_pads_a_short_prompt_is_not_remembered():
    model, ids = make_model(), make_ids(2, 30)
    other = ids.clone()
    other[1, 7:] = 3
    (_, state), (_, same) = prefill(model, ids, [30, 7]), prefill(model, other, [30, 7])
    assert all(torch.equal(a, b) for a, b in zip(state.layers, same.layers, strict=True))


def test_a_state_is_as_large_after_thousands_of_tokens_as_after_one():
    model = make_model()
    _, short = prefill(model, make_ids(2, 1), [1, 1])
    hidden, long = prefill(model, make_ids(2, 3000), [3000, 2999])  # far beyond seq_len
    assert [layer.shape for layer in long.layers] == [layer.shape for layer in short.layers] == [(2, 2, 16, 32)] * 2
    assert hidden.isfinite().all() and all(layer.isfinite().all() for layer in long.layers)


def test_a_state_may_be_taken_up_twice():
    model, ids = make_model(), make_ids()
    _, state = prefill(model, ids, [LENGTH, LENGTH])
    first, _ = next_token(model, ids[:, 0], state)
    next_token(model, ids[:, 1], state)
    assert torch.equal(next_token(model, ids[:, 0], state)[0], first)


def test_a_memory_keeps_the_rows_that_go_on():
    model, ids = make_model(), make_ids(3, 20)
    memory = RetentionMemory(model, rows=3)
    with torch.no_grad():
        list(memory.read(ids[:, :12], [12, 5, 9]))
        memory.select_rows([2, 0])
        (answer,) = memory.read(ids[[2, 0], 12:], [8, 8])
    expected = hidden_of(model, torch.cat((ids[2:, :9], ids[2:, 12:]), 1))[:, 9:]
    close(answer[:1], expected)
    close(answer[1:], hidden_of(model, ids[:1])[:, 12:])


def test_the_state_of_a_row_is_far_smaller_than_a_long_text():
    """Keys and values of the 16 layers of Llama 3.2 1B take 32 KiB a token."""
    with torch.device("meta"):
        memory = RetentionMemory(RetNet(preset("350M") | {"vocab_size": 128256, "seq_len": 8192}), rows=3)
    assert memory.bytes_per_row == 13 * 8 * 128 * 256 * 4 < 32 * 1024 * 512


@pytest.mark.gpu
def test_kernels_agree_with_plain_torch():
    pytest.importorskip("fla")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = {"hidden_size": 128, "forward_dtype": "bfloat16"}
    with torch.device("cuda"):
        model, plain = make_model(**options), make_model(**options | {"forward_dtype": "float32"})
        ids = make_ids(2, 300).cuda()
        documents = (torch.arange(300) // 70).expand(2, -1)
    expected = hidden_of(plain, ids, documents=documents)
    assert isinstance(model.inner.context({"inputs": ids}).mask, Kernels)
    assert (hidden_of(model, ids, documents=documents).float() - expected).norm() / expected.norm() < 2e-2


def test_the_decoder_finds_as_likely_from_a_state_what_it_finds_by_rereading():
    model, prompts = make_model(), [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    forced = [make_ids(1, length, seed=length)[0].tolist() for length in (8, 3, 12)]
    said = []
    for memory in (None, RetentionMemory(model, rows=3)):
        decoding = Decoding(model, prompts, DecodeOptions(mode="recompute"), forced=forced)
        decoding.memory = memory or decoding.memory
        said.append([token for tokens in decoding for token in tokens])
    assert len(said[0]) == 8 + 3 + 12
    for token, expected in zip(said[1], said[0], strict=True):
        assert (token.row, token.id) == (expected.row, expected.id)
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)
