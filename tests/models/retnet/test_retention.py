"""Retention: three forms are one formula, documents of a row do not see each other, and long fades stay finite."""

import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.compiled import CompiledCalls
from models.retnet.retention import Kernels, chunkwise, log_decays, one_position, read_on
from tests.models.retnet.forms import parallel, recurrent
from tests.models.small_retnet import make_ids, make_model

HEADS, KEY = 3, 4


def drawn(length, rows=2, value=8, dtype=torch.float32, seed=0, heads=HEADS):
    """Queries and keys scaled as the model scales them."""
    draw = {"generator": torch.Generator().manual_seed(seed)}
    q, k = (torch.randn(rows, length, heads, KEY, **draw) / KEY**0.25 for _ in range(2))
    return [x.to(dtype) for x in (q, k, torch.randn(rows, length, heads, value, **draw))]


def of_lengths(*rows):
    """Document numbers of rows made of documents of these lengths; -1, padding, behind them."""
    width = max(sum(lengths) for lengths in rows)
    numbers = [[n for n, length in enumerate(lengths) for _ in range(length)] for lengths in rows]
    return torch.tensor([row + [-1] * (width - len(row)) for row in numbers])


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [KEY, 2 * KEY])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_three_forms_are_one_formula(length, value):
    q, k, v = drawn(length, value=value)
    decay = log_decays(HEADS)
    expected = parallel(q, k, v, decay)
    close(recurrent(q, k, v, decay), expected)
    for chunk_size in (1, 16, 64, 1000):
        close(chunkwise(q, k, v, decay, chunk_size=chunk_size), expected)


def test_the_formula_is_a_sum_that_fades_with_distance():
    q, k, v = drawn(5)
    gamma = [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128]
    expected = torch.zeros_like(v)
    for n in range(5):
        for m in range(n + 1):
            for head in range(HEADS):
                weight = (q[:, n, head] * k[:, m, head]).sum(-1, keepdim=True) * gamma[head] ** (n - m)
                expected[:, n, head] += weight * v[:, m, head]
    close(parallel(q, k, v, log_decays(HEADS)), expected, 1e-5)


def test_decays_halve_the_forgetting_from_head_to_head():
    assert (1 - log_decays(4).exp()).tolist() == pytest.approx([2**-5, 2**-6, 2**-7, 2**-8], rel=1e-4)
    assert (log_decays(20) < 0).all()  # float32 would round 1 - 2^-24 to 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from([1, 3, 16, 64]),
)
def test_packed_documents_equal_separate_ones_in_all_forms(rows, chunk_size):
    documents, decay = of_lengths(*rows), log_decays(HEADS)
    q, k, v = drawn(documents.shape[1], rows=len(rows))
    forms = [
        parallel(q, k, v, decay, documents),
        recurrent(q, k, v, decay, documents),
        chunkwise(q, k, v, decay, documents, chunk_size),
    ]
    for row, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            alone = (slice(row, row + 1), slice(start, start + length))
            expected = parallel(q[alone], k[alone], v[alone], decay)
            for form in forms:
                close(form[alone], expected)
            start += length


def test_a_document_leaves_exactly_nothing_in_the_next_one():
    documents, decay = of_lengths([70, 100, 30], [130, 70]), log_decays(HEADS)
    q, k, v = drawn(200)
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :70], other_v[:, :70] = 50.0, -50.0
    for form in (parallel, recurrent, lambda *args: chunkwise(*args, chunk_size=64)):
        found, other = form(q, k, v, decay, documents), form(q, other_k, other_v, decay, documents)
        assert torch.equal(found[0, 70:], other[0, 70:]) and torch.equal(found[1, 130:], other[1, 130:])
        assert not torch.equal(found[1, 70:130], other[1, 70:130])


def test_a_number_that_comes_again_is_another_document():
    documents, decay = torch.tensor([[0] * 5 + [1] * 5 + [0] * 5]), log_decays(HEADS)
    q, k, v = drawn(15, rows=1)
    expected = parallel(q[:, 10:], k[:, 10:], v[:, 10:], decay)
    for form in (parallel, recurrent, lambda *args: chunkwise(*args, chunk_size=4)):
        close(form(q, k, v, decay, documents)[:, 10:], expected)


def test_gradients_of_the_forms_agree():
    documents, decay = of_lengths([30, 50, 10], [90]), log_decays(HEADS)
    found = []
    for form in (parallel, recurrent, lambda *args: chunkwise(*args, chunk_size=16)):
        inputs = [x.requires_grad_() for x in drawn(90)]
        y = form(*inputs, decay, documents)
        found.append(torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), inputs))
    for grads in found[1:]:
        for grad, expected in zip(grads, found[0], strict=True):
            close(grad, expected, 1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [300, 2048, 8192])
def test_long_rows_stay_finite_and_precise(length, dtype):
    q, k, v = (x.requires_grad_() for x in drawn(length, rows=1, value=4, dtype=dtype, heads=8))
    y = chunkwise(q, k, v, log_decays(8))
    y.float().square().mean().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))
    with torch.no_grad():
        wide = [x.double() for x in (q, k, v)]
        place = torch.arange(length, dtype=torch.float64)
        last = torch.exp(log_decays(8).double()[:, None] * (length - 1 - place))  # (N, L)
        weights = torch.einsum("bnk,blnk->bnl", wide[0][:, -1], wide[1]) * last
        expected = torch.einsum("bnl,blne->bne", weights, wide[2])
    error = (y[:, -1].double() - expected).abs().max() / expected.abs().max()
    assert error < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("split", [1, 64, 129])
def test_a_state_goes_on_where_the_text_was_cut(split):
    q, k, v = drawn(200)
    decay, state = log_decays(HEADS), torch.zeros(2, HEADS, KEY, 8)
    expected = parallel(q, k, v, decay)
    both = torch.tensor([split, split])
    first, state = read_on(q[:, :split], k[:, :split], v[:, :split], decay, state, both)
    second, _ = read_on(q[:, split:], k[:, split:], v[:, split:], decay, state, 200 - both)
    close(torch.cat((first, second), 1), expected)


def test_rows_of_different_lengths_end_in_their_own_states():
    q, k, v = drawn(200, rows=4)
    decay, before = log_decays(HEADS), torch.randn(4, HEADS, KEY, 8, generator=torch.Generator().manual_seed(3))
    lengths = [200, 7, 129, 1]
    _, states = read_on(q, k, v, decay, before, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        state = before[row : row + 1]
        for n in range(length):
            _, state = one_position(q[row : row + 1, n], k[row : row + 1, n], v[row : row + 1, n], decay, state)
        close(states[row : row + 1], state)


def test_the_state_is_kept_in_float32_whatever_the_network_works_in():
    """In bfloat16 a state of many positions would stop taking in new ones."""
    q, k, v = drawn(1, dtype=torch.bfloat16)
    state = torch.full((2, HEADS, KEY, 8), 1000.0)
    y, new = read_on(q, k, v, log_decays(HEADS), state, torch.ones(2))
    assert new.dtype == torch.float32 and y.dtype == torch.bfloat16
    gamma = math.exp(log_decays(HEADS)[0])
    expected = gamma * 1000 + k[0, 0, 0, 0].float() * v[0, 0, 0, 0].float()
    assert new[0, 0, 0, 0].item() == pytest.approx(expected.item(), abs=1e-2)


@pytest.fixture
def kernels(monkeypatch):
    """A stand-in that keeps to the signature and the shapes of the library; not compiled, as there."""

    @torch.compiler.disable
    def chunk_retention(q, k, v, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
        assert scale == 1.0 and (cu_seqlens is None or q.shape[0] == 1)
        parts = range(1) if cu_seqlens is None else range(len(cu_seqlens) - 1)
        pieces = [slice(None) if cu_seqlens is None else slice(cu_seqlens[i], cu_seqlens[i + 1]) for i in parts]
        decay = torch.log(1 - 2.0 ** (-5.0 - torch.arange(q.shape[2])))
        return torch.cat([recurrent(q[:, at], k[:, at], v[:, at], decay) for at in pieces], 1), None

    for name in ("fla", "fla.ops", "fla.ops.retention"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["fla.ops.retention"], "chunk_retention", chunk_retention, raising=False)


def test_kernels_get_the_documents_of_all_rows_one_behind_another(kernels):
    documents = torch.tensor([[0] * 4 + [1] * 6 + [-1] * 2, [0] * 12])
    q, k, v = (torch.randn(2, 12, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    decay = torch.log(1 - 2.0 ** (-5.0 - torch.arange(3)))
    assert Kernels.of(documents).borders.tolist() == [0, 4, 10, 12, 24]
    for numbers in (documents, None):
        close(Kernels.of(numbers).retain(q, k, v), parallel(q, k, v, decay, numbers), 1e-5)


def test_no_number_of_documents_makes_another_graph(kernels, monkeypatch):
    made, torch_compile = [], torch.compile
    monkeypatch.setattr("models.retnet.model.has_kernels", lambda *of_run: True)
    monkeypatch.setattr(torch, "compile", lambda f, **more: torch_compile(f, backend=counted, **more))

    def counted(graph, inputs):
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    core, after_batch = make_model().inner, []
    core.network = CompiledCalls()
    for number in (2, 3, 1, 4, 6):
        documents = (torch.arange(24) * number // 24).expand(2, -1)
        batch = {"inputs": make_ids(), "documents": documents, "positions": torch.arange(24).expand(2, -1)}
        ((_, (answer,)),) = core.unroll(batch, 1)
        answer.sum().backward()
        after_batch.append(len(made))
    torch._dynamo.reset()
    assert after_batch[0] and set(after_batch) == {after_batch[0]}
